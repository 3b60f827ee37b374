"""Who may speak: the list, the owner's hand, tokens, bans and new keys, in every order."""

from itertools import pairwise

import pytest
from msgspec import structs

from coordinator.intake.register import Register
from coordinator.intake.roster import Roster
from coordinator.ledger.sqlite import SqliteJournal
from edge.errors import Rejected, StateError
from edge.protocol.enrolment import draw_token, make_claim, make_rotation
from edge.protocol.signing import new_key, public_key

COORDINATOR = new_key()
PRIVATE = [new_key() for _ in range(4)]
A, B, C, D = (public_key(key) for key in PRIVATE)
NOW = 1000.0


class House:
    """A roster over one journal, as its owner changes it."""

    def __init__(self, *, listed=(), is_open=False):
        self.journal, self.listed = SqliteJournal(None, "home"), dict(listed)
        self.access = self.journal.access
        self.start(is_open=is_open)

    def start(self, *, is_open=False):
        self.roster = Roster(self.journal, lambda: self.listed, is_open)

    def enrol(self, key, device="lamp"):
        """How it ends when `key` speaks for a device."""
        try:
            self.roster.enrol(device, key, NOW)
            self.roster.flush()
        except Rejected as rejected:
            return rejected.reason
        return "in"

    def redeem(self, token, private, device="lamp", at=NOW):
        key = public_key(private)
        try:
            claim = make_claim(token, device, key)
            self.roster.redeem(claim, "home", public_key(COORDINATOR), device, key, at)
        except Rejected as rejected:
            return rejected.reason
        return self.enrol(key, device)

    def rotate(self, *keys, device="lamp"):
        words = [make_rotation("home", device, old, new) for old, new in pairwise(keys)]
        try:
            return self.roster.rotate(tuple(words), "home", device, NOW)
        except Rejected as rejected:
            return rejected.reason


def token(**changes):
    return draw_token(COORDINATOR, **{"fleet": "home", "expires": 2000, **changes})


def test_a_device_taken_out_of_a_closed_list_is_refused_also_after_a_restart():
    house = House(listed={"lamp": A})
    assert house.enrol(A) == "in"
    house.listed = {}
    assert house.roster.refresh() == {"lamp": A}
    assert house.enrol(A) == "unknown-device"
    house.start()
    assert (house.enrol(A), house.roster.is_barred("lamp")) == ("unknown-device", True)


def test_a_device_that_enrolled_itself_is_out_when_enrolment_is_closed():
    house = House(is_open=True)
    assert house.enrol(A) == "in"
    house.start(is_open=False)
    assert house.enrol(A) == "unknown-device"


def test_who_is_allowed_by_hand_is_in_whatever_the_list_lacks():
    house = House()
    assert house.enrol(A) == "unknown-device"
    house.access.allow({"lamp": A}, NOW)
    house.roster.refresh()
    assert (house.enrol(A), house.enrol(B)) == ("in", "unknown-device")


def test_a_device_that_the_list_gives_another_key_has_that_key_alone():
    house = House(is_open=True)
    house.enrol(A)
    house.listed = {"lamp": B}
    house.roster.refresh()
    assert (house.enrol(A), house.enrol(B)) == ("unknown-device", "in")
    assert house.roster.key("lamp") == B
    assert [one.key for one in house.journal.devices()] == [B]


def test_many_are_allowed_all_or_none():
    house = House()
    house.access.allow({"lamp": A}, NOW)
    with pytest.raises(StateError, match="lamp has key"):
        house.access.allow({"kettle": C, "lamp": B}, NOW)
    assert [(one.device, one.key) for one in house.access.all()] == [("lamp", A)]


def test_a_ban_holds_for_the_name_with_any_key_and_for_the_key_under_any_name():
    house = House(is_open=True)
    house.enrol(A)
    house.access.ban("lamp", NOW)
    assert house.roster.refresh() == {"lamp": A}
    assert (house.enrol(A), house.enrol(B), house.enrol(A, "kettle")) == ("banned", "banned", "banned")
    assert (house.roster.register.is_banned("lamp", A), house.roster.register.is_banned("lamp", B)) == (
        True,
        False,
    )
    assert house.enrol(B, "kettle") == "in"


def test_an_unbanned_device_is_as_it_was_before():
    house = House(listed={"lamp": A})
    house.access.allow({"kettle": B}, NOW)
    for name in ("lamp", "kettle"):
        house.access.ban(name, NOW)
        assert house.access.unban(name)
        assert not house.access.unban(name)
    house.roster.refresh()
    assert (house.enrol(A), house.enrol(B, "kettle"), house.enrol(C)) == ("in", "in", "unknown-device")


def test_a_device_that_is_banned_neither_counts_as_online_nor_is_forgotten():
    house = House(is_open=True)
    house.enrol(A)
    house.access.ban("lamp", NOW)
    house.roster.refresh()
    assert house.roster.online() == []
    with pytest.raises(StateError, match="lamp is banned, and forgotten it could come again"):
        house.access.forget("lamp")


def test_a_forgotten_device_comes_with_another_key_and_the_broker_is_to_be_cleared():
    house = House(is_open=True)
    house.enrol(A)
    assert house.access.forget("lamp")
    assert house.roster.refresh() == {"lamp": A}
    assert house.enrol(B) == "in"
    assert house.access.forgotten() == ["lamp"]
    house.access.clear(["lamp"])
    assert house.access.forgotten() == []


def test_a_token_lets_one_device_in_and_serves_nobody_afterwards():
    house, once = House(), token()
    assert house.redeem(once, PRIVATE[0]) == "in"
    assert house.redeem(once, PRIVATE[0]) == "in"  # a message comes twice
    assert house.redeem(once, PRIVATE[1], "kettle") == "unknown-device"
    assert house.redeem(once, PRIVATE[1]) == "unknown-device"
    house.start()
    assert (house.enrol(A), house.redeem(once, PRIVATE[1], "kettle")) == ("in", "unknown-device")


def test_a_claim_that_was_overheard_lets_no_other_key_or_name_in():
    house, once = House(), token()
    claim = make_claim(once, "lamp", A)
    for device, key in (("lamp", B), ("kettle", A)):
        with pytest.raises(Rejected, match="bad-signature"):
            house.roster.redeem(claim, "home", public_key(COORDINATOR), device, key, NOW)
    assert house.access.all() == []


@pytest.mark.parametrize(
    ("made", "at"),
    [
        (token(fleet="away"), NOW),
        (token(expires=900), NOW),
        (token(device_id="kettle"), NOW),
        (draw_token(new_key(), "home", 2000), NOW),
    ],
    ids=["another fleet's", "too late", "another device's", "another coordinator's"],
)
def test_a_token_that_is_not_for_this_lets_nobody_in(made, at):
    house = House()
    assert house.redeem(made, PRIVATE[0], at=at) == "unknown-device"
    assert house.enrol(A) == "unknown-device"


def test_a_token_of_several_uses_is_counted_by_devices():
    house, twice = House(), token(uses=2)
    found = [house.redeem(twice, PRIVATE[n], f"lamp-{n}") for n in range(3)]
    assert found == ["in", "in", "unknown-device"]
    assert [one.device for one in house.access.spent(twice.grant.nonce)] == ["lamp-0", "lamp-1"]


def test_no_token_takes_a_name_that_is_anothers_or_lifts_a_ban():
    house = House(listed={"lamp": A})
    house.enrol(A)
    assert house.redeem(token(), PRIVATE[1]) == "unknown-device"
    house.access.ban("lamp", NOW)
    house.roster.refresh()
    assert house.redeem(token(), PRIVATE[0]) == "banned"
    assert house.redeem(token(), PRIVATE[0], "kettle") == "banned"


@pytest.mark.parametrize("how", ["listed", "hand", "token", "open"])
def test_a_device_that_changed_its_key_keeps_its_place_and_the_old_key_has_none(how):
    house = House(listed={"lamp": A} if how == "listed" else (), is_open=how == "open")
    if how == "hand":
        house.access.allow({"lamp": A}, NOW)
        house.roster.refresh()
    if how == "token":
        house.redeem(token(), PRIVATE[0])
    assert house.enrol(A) == "in"
    assert house.rotate(*PRIVATE[:2]) == B
    assert (house.enrol(A), house.enrol(B)) == ("unknown-device", "in")
    house.start(is_open=how == "open")
    assert (house.enrol(A), house.enrol(B), house.roster.key("lamp")) == ("unknown-device", "in", B)


def test_several_rotations_are_followed_at_once_and_an_old_one_leads_nowhere():
    house = House(listed={"lamp": A})
    assert house.rotate(*PRIVATE[:3]) == C
    assert house.rotate(*PRIVATE[:3]) == C  # said again
    assert house.rotate(PRIVATE[0], PRIVATE[3]) == "unknown-device"  # the first key was stolen, and is spent
    assert house.enrol(C) == "in"


def test_a_word_device_that_leaves_the_list_is_out():
    house = House(listed={"lamp": A})
    house.rotate(*PRIVATE[:2])
    house.listed = {}
    house.roster.refresh()
    assert house.enrol(B) == "unknown-device"


def test_a_rotation_needs_the_word_of_the_key_that_is_pinned():
    house = House(listed={"lamp": A})
    stolen = make_rotation("home", "lamp", PRIVATE[2], PRIVATE[3])
    forged = (structs.replace(stolen, old=A),)
    with pytest.raises(Rejected, match="bad-signature"):
        house.roster.rotate(forged, "home", "lamp", NOW)
    assert house.rotate(PRIVATE[2], PRIVATE[3]) == "unknown-device"
    assert house.rotate(PRIVATE[0], PRIVATE[1], device="kettle") == "unknown-device"


def test_a_banned_key_cannot_rotate_itself_free():
    house = House(listed={"lamp": A})
    house.enrol(A)
    house.access.ban("lamp", NOW)
    house.roster.refresh()
    assert house.rotate(*PRIVATE[:2]) == "banned"


def test_the_register_alone_reads_a_list_that_changes(tmp_path):
    listed = {"lamp": A}
    register = Register(SqliteJournal(None, "home").access, lambda: listed, is_open=False)
    assert register.admits("lamp", A)
    listed.clear()
    assert register.admits("lamp", A)
    register.reload()
    assert not register.admits("lamp", A)
