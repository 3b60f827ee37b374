"""Tokens and rotations as they travel: whole, or refused in one line."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ConfigError, Rejected
from edge.protocol.enrolment import (
    AccessNotice,
    Claim,
    Enrol,
    Grant,
    Rotation,
    check_claim,
    check_rotations,
    draw_token,
    make_claim,
    make_rotation,
    read_token,
    write_token,
)
from edge.protocol.messages import encode_message
from edge.protocol.signing import new_key, public_key

COORDINATOR, DEVICE = new_key(), new_key()
TOKEN = draw_token(COORDINATOR, "home", 2000, uses=3)
TEXT = write_token(TOKEN)


def test_a_token_is_read_however_it_was_broken_into_lines():
    assert read_token(TEXT) == TOKEN
    assert (
        read_token("\n  ".join(TEXT[place : place + 60] for place in range(0, len(TEXT), 60)) + "\n") == TOKEN
    )


@given(st.integers(0, len(TEXT) - 1), st.sampled_from("ABCabc019-_ é\x00"))
def test_a_token_with_one_wrong_letter_is_refused_or_the_same(place, letter):
    told = refusal(TEXT[:place] + letter + TEXT[place + 1 :])
    assert told == "" or told.startswith("the token is not whole")
    assert len(told) < 300


def refusal(text):
    """Why a token is refused; nothing where it is the whole one: its last letter has bits to spare."""
    try:
        return "" if read_token(text) == TOKEN else "another token"
    except ConfigError as error:
        return str(error)


@given(st.text(max_size=200))
def test_what_is_no_token_is_refused(text):
    with pytest.raises(ConfigError, match="the token is not whole"):
        read_token(text)


@pytest.mark.parametrize("content", ["", "gA", "3wAAAAA", "k" * 4000])
def test_a_prefix_makes_no_token(content):
    with pytest.raises(ConfigError, match="the token is not whole"):
        read_token(f"tunefleet-token-{content}")


def test_a_claim_is_good_for_one_device_and_one_key():
    key = public_key(DEVICE)
    claim = make_claim(TOKEN, "lamp", key)
    check_claim(claim, "home", public_key(COORDINATOR), "lamp", key, 1999.0)
    for device, other in (("lamp", public_key(COORDINATOR)), ("kettle", key)):
        with pytest.raises(Rejected, match="bad-signature"):
            check_claim(claim, "home", public_key(COORDINATOR), device, other, 1999.0)


def test_a_claim_says_nothing_of_the_tokens_secret():
    assert TOKEN.secret not in encode_message(make_claim(TOKEN, "lamp", public_key(DEVICE))).decode()


def test_more_uses_than_were_granted_break_the_signature():
    key = public_key(DEVICE)
    grant = Grant(fleet="home", expires=9999, nonce=TOKEN.grant.nonce, coordinator=public_key(COORDINATOR))
    claim = make_claim(TOKEN, "lamp", key)
    with pytest.raises(Rejected, match="bad-signature"):
        check_claim(Claim(grant=grant, signature=claim.signature, proof=claim.proof), "home",
                    public_key(COORDINATOR), "lamp", key, 1.0)  # fmt: skip


def test_rotations_lead_from_any_key_of_the_chain_to_the_newest():
    keys = [new_key() for _ in range(4)]
    chain = tuple(make_rotation("home", "lamp", old, new) for old, new in pairwise(keys))
    public = [public_key(key) for key in keys]
    for place, pinned in enumerate(public):
        assert check_rotations(chain, "home", "lamp", pinned) == tuple(public[place:])
    for wrong in (("away", "lamp"), ("home", "kettle")):
        with pytest.raises(Rejected):
            check_rotations(chain, *wrong, public[0])
    with pytest.raises(Rejected, match="does not lead on"):
        check_rotations((), "home", "lamp", public[0])


GOLDEN = [
    (
        Enrol(claim=Claim(grant=Grant(fleet="home", expires=1, nonce="a" * 64, coordinator="b" * 64),
                          signature="c" * 128, proof="d" * 128)),
        b'{"claim":{"grant":{"fleet":"home","expires":1,"nonce":"%s","coordinator":"%s","uses":1,'
        b'"device_id":null},"signature":"%s","proof":"%s"}}'
        % (b"a" * 64, b"b" * 64, b"c" * 128, b"d" * 128),
    ),
    (
        Enrol(rotations=(Rotation(fleet="home", device_id="lamp", old="a" * 64, new="b" * 64,
                                  signature="c" * 128),)),
        b'{"rotations":[{"fleet":"home","device_id":"lamp","old":"%s","new":"%s","signature":"%s"}]}'
        % (b"a" * 64, b"b" * 64, b"c" * 128),
    ),
    (AccessNotice(key="a" * 64, standing="banned"), b'{"key":"%s","standing":"banned"}' % (b"a" * 64)),
]  # fmt: skip


@pytest.mark.parametrize(("record", "text"), GOLDEN, ids=["claim", "rotations", "notice"])
def test_the_bytes_on_the_wire_are_these(record, text):
    assert encode_message(record) == text
