"""Signatures: golden bytes, and what is refused."""

import json

import pytest

from edge.errors import Outdated, ProtocolError, Repeated, Unproven
from edge.protocol.messages import Presence, Want
from edge.protocol.signing import Keyring, Signer, Stamp, check_order, new_key, public_key, read_signed

KEY = bytes(range(32))
TOPIC = "tunefleet/v2/home/device/lamp/state"
PRESENCE = Presence(online=True)
SIGNED = (
    b'{"body":{"online":true},'
    b'"key":"03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8",'
    b'"signature":"72214f2674debb5610f23dd125327b96bf3f6b2fa1dc08d36cd7fae0e64c268d14d6846ed11c79cca48c09c31b8df65d20cecb87dcd80b6267f29bf3cf6a0204",'
    b'"epoch":1760000000000,"count":1}'
)


def unseal(payload, topic=TOPIC, kind=Presence):
    return Keyring().open(topic, read_signed(payload), kind)


def test_golden_bytes():
    assert Signer(KEY, 1760000000000).seal(TOPIC, PRESENCE) == SIGNED


def test_what_was_signed_is_opened_with_the_signers_key():
    opened = unseal(SIGNED)
    assert (opened.record, opened.key, opened.stamp) == (PRESENCE, public_key(KEY), Stamp(1760000000000, 1))
    assert opened.body == b'{"online":true}'
    assert len(opened.digest) == 64


def test_every_key_is_another():
    assert len({new_key(), new_key(), KEY}) == 3
    assert len(public_key(new_key())) == 64


def test_stamps_of_a_session_rise_and_those_of_the_next_are_later():
    first, second = Signer(KEY, 5), Signer(KEY, 6)
    stamps = [unseal(one.seal(TOPIC, PRESENCE)).stamp for one in (first, first, second)]
    assert stamps == [(5, 1), (5, 2), (6, 1)] == sorted(stamps)


def test_white_space_in_the_body_belongs_to_what_is_signed():
    with pytest.raises(Unproven, match="bad signature"):
        unseal(SIGNED.replace(b'"online":true', b'"online": true'))


@pytest.mark.parametrize(
    "topic",
    [
        "tunefleet/v2/home/device/fan/state",
        "tunefleet/v2/other/device/lamp/state",
        "tunefleet/v2/home/device/lamp/hello",
        "tunefleet/v1/home/device/lamp/state",
    ],
)
def test_on_another_topic_it_proves_nothing(topic):
    with pytest.raises(Unproven, match="bad signature"):
        unseal(SIGNED, topic)


@pytest.mark.parametrize("field", ["body", "key", "signature", "epoch", "count"])
def test_a_changed_message_proves_nothing(field):
    other = json.loads(Signer(new_key(), 7).seal(TOPIC, Presence(online=False))) | {"count": 2}
    changed = json.loads(SIGNED) | {field: other[field]}
    with pytest.raises(Unproven, match="bad signature"):
        unseal(json.dumps(changed, separators=(",", ":")).encode())


def test_a_key_that_is_no_point_proves_nothing():
    changed = json.loads(SIGNED) | {"key": "ff" * 32}
    with pytest.raises(Unproven, match="bad signature"):
        unseal(json.dumps(changed, separators=(",", ":")).encode())


def test_a_signed_message_of_another_kind_is_no_message():
    with pytest.raises(ProtocolError, match="Want: "):
        unseal(SIGNED, kind=Want)


@pytest.mark.parametrize("payload", [b"", b"{}", b"null", SIGNED[:-5], SIGNED + b" " * 70_000])
def test_what_is_not_signed_is_no_message(payload):
    with pytest.raises(Unproven, match="Signed: "):
        unseal(payload)


def test_what_is_earlier_than_the_latest_is_told_apart_from_the_latest_itself():
    latest = Stamp(5, 3)
    for later in (Stamp(5, 4), Stamp(6, 1)):
        check_order(later, latest, "it", again=False)
    with pytest.raises(Outdated, match="it 2 of its epoch came after 3"):
        check_order(Stamp(5, 2), latest, "it", again=True)
    with pytest.raises(Outdated, match="it was signed in epoch 4, which was followed by 5"):
        check_order(Stamp(4, 9), latest, "it", again=True)
    check_order(latest, latest, "it", again=True)
    with pytest.raises(Repeated):
        check_order(latest, latest, "it", again=False)
