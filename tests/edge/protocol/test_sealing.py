import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ProtocolError, Rejected
from edge.protocol.messages import Facts, encode_message
from edge.protocol.sealing import (
    FACTS_BYTES,
    OVERHEAD_BYTES,
    SEALED_BYTES,
    Context,
    open_update,
    seal_update,
    sealing_key,
    sealing_public_key,
)

COORDINATOR, OTHER = bytes(range(32)), bytes(range(1, 33))
FACTS = Facts(num_examples=6, num_tokens=60, num_steps=3, seconds=1.5, loss_before=2.0, loss_after=None)
CONTEXT = Context("home", "lamp", 4, 1, "b" * 64)
DELTA = b"delta" * 100


def sealed(context=CONTEXT, delta=DELTA, facts=FACTS):
    return seal_update(facts, delta, sealing_public_key(COORDINATOR), context)


@given(st.binary(max_size=2000))
def test_what_was_sealed_is_opened(delta):
    assert open_update(sealed(delta=delta), COORDINATOR, CONTEXT) == (FACTS, delta)


def test_a_sealed_update_is_so_many_bytes_longer_whatever_its_facts_are():
    most = Facts(
        num_examples=2**53,
        num_tokens=2**53,
        num_steps=2**53,
        seconds=1.7976931348623157e308,
        loss_before=-1.7976931348623157e308,
        loss_after=-1.7976931348623157e308,
    )
    assert len(encode_message(most)) <= FACTS_BYTES
    for facts in (FACTS, most):
        assert len(sealed(facts=facts)) == len(DELTA) + SEALED_BYTES
        assert open_update(sealed(facts=facts), COORDINATOR, CONTEXT).facts == facts


def test_neither_facts_nor_delta_can_be_read_on_the_way():
    on_the_way = sealed()
    assert b"num_examples" not in on_the_way
    assert b"delta" not in on_the_way
    assert on_the_way != sealed()


def test_another_coordinator_cannot_open_it():
    with pytest.raises(Rejected, match=r"unsealable: .*another coordinator's key"):
        open_update(sealed(), OTHER, CONTEXT)


@pytest.mark.parametrize(
    "change",
    [
        {"fleet": "farm"},
        {"device_id": "fan"},
        {"base_version": 5},
        {"attempt": 0},
        {"base_sha256": "c" * 64},
    ],
)
def test_it_opens_as_the_update_that_it_was_sealed_as_and_as_no_other(change):
    with pytest.raises(Rejected, match="unsealable"):
        open_update(sealed(), COORDINATOR, CONTEXT._replace(**change))


@given(st.integers(0, len(DELTA) + SEALED_BYTES - 1), st.integers(1, 255))
def test_a_changed_byte_is_found_wherever_it_is(place, change):
    changed = bytearray(sealed())
    changed[place] ^= change
    with pytest.raises(Rejected, match="unsealable"):
        open_update(bytes(changed), COORDINATOR, CONTEXT)


@given(st.integers(0, len(DELTA) + SEALED_BYTES - 1))
def test_a_truncated_update_is_refused(length):
    with pytest.raises(Rejected, match="unsealable"):
        open_update(sealed()[:length], COORDINATOR, CONTEXT)


@given(st.binary(max_size=800))
def test_junk_is_refused(junk):
    with pytest.raises(Rejected, match="unsealable"):
        open_update(junk, COORDINATOR, CONTEXT)


@pytest.mark.parametrize("key", [bytes(32), b"\1" + bytes(31), b"\xff" * 32])
def test_a_one_time_key_of_small_order_is_refused(key):
    with pytest.raises(Rejected, match="unsealable"):
        open_update(key + sealed()[32:], COORDINATOR, CONTEXT)


def test_parts_of_two_updates_are_two_updates_and_the_signed_hash_tells_them_apart():
    # HPKE alone binds each part to its context: that both are of one payload is what the header signs.
    first, second = sealed(), sealed(delta=b"other")
    cut = FACTS_BYTES + OVERHEAD_BYTES
    assert open_update(first[:cut] + second[cut:], COORDINATOR, CONTEXT).delta == b"other"


def test_a_key_that_is_none_is_told():
    with pytest.raises(ProtocolError, match=r"manifest: seal 0{16}… is no X25519 key"):
        seal_update(FACTS, DELTA, "00" * 32, CONTEXT)


def test_a_restored_coordinator_has_the_same_key_and_it_is_not_its_identity():
    assert sealing_key(COORDINATOR) == sealing_key(bytes(range(32)))
    assert sealing_key(COORDINATOR) not in (COORDINATOR, sealing_key(OTHER))


def test_the_derived_key_is_a_format():
    # A backup from before a new release must open what was sealed for it.
    golden = "e8bf5847bcfba4bb15787e56535ec22624243f1e24cb0823bf959c6c55fa4916"
    assert sealing_public_key(COORDINATOR) == golden
