import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from coordinator.intake.admission import Rules, check_header, check_id, check_payload, delta_norm
from coordinator.ledger.head import Standing
from edge.errors import Rejected
from edge.protocol.codec import encode_adapter

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
    sound = check_payload(good, GOOD, RULES, STANDING)
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
    assert reason(check_payload, header(GOOD), GOOD + b" ", RULES, STANDING) == "hash-mismatch"


def test_the_norm_is_of_all_increments_together():
    assert delta_norm(adapter(0.5)) == pytest.approx(np.sqrt(12 * 0.25))
