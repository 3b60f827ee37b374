import tracemalloc

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from coordinator.intake.admission import (
    Rules,
    check_header,
    check_id,
    check_payload,
    delta_norm,
    unseal_payload,
)
from coordinator.ledger.head import Standing
from edge.errors import Rejected
from edge.protocol.codec import encode_adapter, max_payload_bytes
from edge.protocol.messages import Facts
from edge.protocol.sealing import SEALED_BYTES, Context, seal_update, sealing_public_key
from edge.storage.mapping import map_file

BASE = "ab" * 32
RULES = Rules(fleet="home", base=BASE, max_staleness=2, max_update_bytes=10_000, max_norm=10.0)


def adapter(value=1.0, rank=2, width=3):
    a, b = np.full((rank, width), value, np.float32), np.full((width, rank), value, np.float32)
    return LoraAdapter({"m": Factors(a, b, 2.0)})


# 4 -> 5 was rolled back to 2: 2, 1, 0 and 6 are the lineage; of these 0 has lost its files.
BLOBS = {number: {"r2": f"{number:064x}"} for number in (6, 2, 1)}
STANDING = Standing(6, {6: 2, 2: 2, 1: 1, 0: 0}, BLOBS, {"r2": adapter()})


@pytest.fixture
def header(make_header):
    def make(payload, **changes):
        return make_header(payload, **{"tier": "r2", "base_version": 6, "base": BASE} | changes)

    return make


GOOD = encode_adapter(adapter(0.5), "f32")


def reason(check, *arguments):
    with pytest.raises(Rejected) as caught:
        check(*arguments)
    assert len(caught.value.detail) < 2000
    return caught.value.reason


def test_a_sound_update_passes_and_gives_its_delta(header):
    good = header(GOOD)
    check_id(good, good.update)
    check_header(good, RULES, STANDING)
    unsealed = unseal_payload(good, memoryview(GOOD), RULES)
    sound = check_payload(*unsealed, RULES, STANDING)
    assert (sound.delta, sound.norm) == (adapter(0.5), pytest.approx(np.sqrt(12 * 0.25)))


@pytest.mark.parametrize("changes", [{"update": "0" * 32}, {"sha256": "1" * 64, "update": "0" * 32}])
def test_an_id_that_does_not_belong_to_the_content_is_refused(header, changes):
    bad = header(GOOD, **changes)
    assert reason(check_id, bad, bad.update) == "malformed"


def test_a_header_on_another_updates_topic_is_refused(header):
    assert reason(check_id, header(GOOD), "0" * 32) == "malformed"


def test_an_update_of_another_version_of_that_number_is_rejected(header):
    same, other = (header(GOOD, base_version=2, base_sha256=f"{number:064x}") for number in (2, 3))
    for good in (same, header(GOOD, base_version=2)):
        check_id(good, good.update)
        check_header(good, RULES, STANDING)
    assert same.update != other.update
    with pytest.raises(Rejected, match="version 2 is another one here than the update began from") as caught:
        check_header(other, RULES, STANDING)
    assert caught.value.reason == "unknown-version"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"fleet": "other"}, "malformed"),
        ({"base": "00" * 32}, "foreign-base"),
        ({"base_version": 7}, "unknown-version"),
        ({"base_version": 4}, "rolled-back"),
        ({"base_version": 0}, "unknown-version"),
        ({"tier": "r64"}, "wrong-shape"),
        ({"size_bytes": 10_001}, "too-large"),
        ({"size_bytes": 1 << 40}, "too-large"),
        ({"size_bytes": 9_999}, "too-large"),  # more than this tier needs in any form
    ],
)
def test_a_header_that_is_not_wanted_is_rejected(changes, expected, header):
    assert reason(check_header, header(GOOD, **changes), RULES, STANDING) == expected


def test_staleness_is_counted_along_the_lineage(header):
    check_header(header(GOOD, base_version=1), RULES, STANDING)
    strict = RULES._replace(max_staleness=0)
    check_header(header(GOOD, base_version=2), strict, STANDING)  # a rollback makes nothing older
    assert reason(check_header, header(GOOD, base_version=1), strict, STANDING) == "too-stale"


def not_finite():
    bad = bytearray(GOOD)
    bad[-4:] = np.float32(np.nan).tobytes()
    return bytes(bad)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"", "malformed"),
        (GOOD[:-1], "malformed"),
        (b"\xff" * 200, "malformed"),
        (encode_adapter(adapter(rank=1), "f32"), "wrong-shape"),
        (encode_adapter(adapter(width=4), "f32"), "wrong-shape"),
        (encode_adapter(LoraAdapter({"n": adapter().modules["m"]}), "f32"), "wrong-shape"),
        (not_finite(), "not-finite"),
        (encode_adapter(adapter(1e30), "f32"), "norm-too-large"),
        (encode_adapter(adapter(3.0), "f32"), "norm-too-large"),
    ],
)
def test_a_payload_that_is_not_sound_is_rejected(payload, expected, header):
    assert reason(check_payload, header(payload), payload, RULES, STANDING) == expected


def test_a_payload_of_another_hash_is_rejected(header):
    assert reason(unseal_payload, header(GOOD), memoryview(GOOD + b" "), RULES) == "hash-mismatch"


IDENTITY = bytes(range(32))
FACTS = Facts(num_examples=7, num_tokens=70, num_steps=3, seconds=1.5, loss_before=2.0, loss_after=1.0)


def sealed_update(header, key=IDENTITY, **changes):
    """A header and the payload that its device has sealed."""
    place = {"device_id": "lamp", "base_version": 6, "attempt": 0, "base_sha256": f"{6:064x}"} | changes
    payload = seal_update(FACTS, GOOD, sealing_public_key(key), Context("home", *place.values()))
    told = dict.fromkeys(Facts.__struct_fields__, 0) | {"loss_before": None, "loss_after": None}
    base = {"device_id": "lamp", "base_version": 6, "attempt": 0, "base_sha256": f"{6:064x}"}
    return header(payload, is_sealed=True, **base, **told), payload


def test_a_sealed_update_is_opened_with_its_facts(header):
    rules = RULES._replace(identity=IDENTITY)
    head, payload = sealed_update(header)
    check_header(head, rules, STANDING)
    unsealed = unseal_payload(head, memoryview(payload), rules)
    assert unsealed.delta == GOOD
    assert (unsealed.header.num_examples, unsealed.header.loss_after) == (7, 1.0)
    assert unsealed.header.sha256 == head.sha256  # of what was sent
    assert check_payload(*unsealed, rules, STANDING).delta == adapter(0.5)


def test_an_update_that_was_sealed_for_another_coordinator_is_rejected(header):
    rules = RULES._replace(identity=IDENTITY)
    head, payload = sealed_update(header, key=bytes(32))
    assert reason(unseal_payload, head, memoryview(payload), rules) == "unsealable"


@pytest.mark.parametrize("change", [{"device_id": "fan"}, {"attempt": 1}, {"base_sha256": "0" * 64}])
def test_a_sealed_payload_cannot_be_sent_as_another_update(header, change):
    rules = RULES._replace(identity=IDENTITY)
    head, payload = sealed_update(header, **change)
    assert reason(unseal_payload, head, memoryview(payload), rules) == "unsealable"


@pytest.mark.parametrize("payload", [b"", b"junk", GOOD])
def test_what_only_says_that_it_is_sealed_is_rejected(header, payload):
    assert reason(unseal_payload, header(payload, is_sealed=True), memoryview(payload), RULES) == "unsealable"


def test_a_sealed_update_may_be_longer_by_its_seal_and_no_byte_more(header):
    largest = max_payload_bytes(adapter(), "f32")
    for size, is_sealed, is_taken in (
        (largest + SEALED_BYTES, True, True),
        (largest + SEALED_BYTES + 1, True, False),
        (largest + 1, False, False),
    ):
        head = header(GOOD, size_bytes=size, is_sealed=is_sealed)
        if is_taken:
            check_header(head, RULES, STANDING)
        else:
            assert reason(check_header, head, RULES, STANDING) == "too-large"


def test_the_norm_is_of_all_increments_together():
    assert delta_norm(adapter(0.5)) == pytest.approx(np.sqrt(12 * 0.25))


def test_a_large_sealed_update_is_opened_into_one_piece_of_memory(header, tmp_path):
    rules, delta = RULES._replace(identity=IDENTITY), bytes(1 << 24)
    context = Context("home", "lamp", 6, 0, f"{6:064x}")
    path = tmp_path / "payload"
    path.write_bytes(seal_update(FACTS, delta, sealing_public_key(IDENTITY), context))
    sent = {"device_id": "lamp", "attempt": 0, "base_sha256": f"{6:064x}", "is_sealed": True}
    head = header(path.read_bytes(), **sent)
    tracemalloc.start()
    try:
        assert len(unseal_payload(head, map_file(path), rules).delta) == len(delta)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * len(delta)
    finally:
        tracemalloc.stop()


def test_noise_that_the_fleet_asks_for_makes_no_update_too_long(header):
    noised = encode_adapter(adapter(40.0), "f32")
    head, rules = header(noised), RULES._replace(deviation=40.0)
    assert check_payload(head, noised, rules, STANDING).norm > RULES.max_norm
    assert reason(check_payload, head, noised, rules._replace(deviation=1.0), STANDING) == "norm-too-large"
