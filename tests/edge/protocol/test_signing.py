"""Signatures: golden bytes, and what is refused."""

import json

import pytest

from edge.errors import ProtocolError, Rejected
from edge.protocol.messages import Presence, Want
from edge.protocol.signing import new_key, open_signed, public_key, sign_message

KEY = bytes(range(32))
PRESENCE = Presence(online=True, epoch=7)
SIGNED = (
    b'{"body":{"online":true,"epoch":7},'
    b'"key":"03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8",'
    b'"signature":"befdcf0ddc18cb6b1a623f88d280bc27cfe48a630c180e9a524b0d89fcd273b344213ce54b9c1ff30d97f1ebab7162c187b59178455eb25a22f9cb5bc5869100"}'
)


def test_golden_bytes():
    assert sign_message(PRESENCE, KEY) == SIGNED


def test_what_was_signed_is_opened_with_the_signers_key():
    assert open_signed(SIGNED, Presence) == (PRESENCE, public_key(KEY))


def test_every_key_is_another():
    assert len({new_key(), new_key(), KEY}) == 3
    assert len(public_key(new_key())) == 64


def test_white_space_in_the_body_belongs_to_what_is_signed():
    with pytest.raises(Rejected, match="bad-signature"):
        open_signed(SIGNED.replace(b'"online":true', b'"online": true'), Presence)


@pytest.mark.parametrize("field", ["body", "key", "signature"])
def test_a_changed_message_is_rejected(field):
    other = json.loads(sign_message(Presence(online=False, epoch=8), new_key()))
    changed = json.loads(SIGNED) | {field: other[field]}
    with pytest.raises(Rejected) as refusal:
        open_signed(json.dumps(changed, separators=(",", ":")).encode(), Presence)
    assert refusal.value.reason == "bad-signature"


def test_a_key_that_is_no_point_is_rejected():
    changed = json.loads(SIGNED) | {"key": "ff" * 32}
    with pytest.raises(Rejected, match="bad-signature"):
        open_signed(json.dumps(changed, separators=(",", ":")).encode(), Presence)


def test_a_signed_message_of_another_kind_is_no_message():
    with pytest.raises(ProtocolError, match="Want: "):
        open_signed(SIGNED, Want)


@pytest.mark.parametrize("payload", [b"", b"{}", b"null", SIGNED[:-5]])
def test_what_is_not_signed_is_no_message(payload):
    with pytest.raises(ProtocolError, match="Signed: "):
        open_signed(payload, Presence)
