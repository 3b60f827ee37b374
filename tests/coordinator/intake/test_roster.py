"""Whom a fleet takes in, and whose place goes to whom."""

import asyncio

import msgspec
import pytest

from coordinator.intake.roster import Roster
from coordinator.ledger.sqlite import SqliteJournal
from coordinator.limits import Limits
from edge.errors import DiskFull, Rejected


class Door:
    """A roster with a clock that the test turns."""

    def __init__(self, **limits):
        self.now, self.journal = 0.0, SqliteJournal(None, "home")
        self.limits = msgspec.convert(limits, Limits)
        self.open()

    def open(self, listed=()):
        if hasattr(self, "roster"):
            self.roster.flush()
        delivered = self.journal.delivered()
        self.roster = Roster(
            self.journal, dict(listed), is_open=True, limits=self.limits, delivered=delivered,
            timer=lambda: self.now,
        )  # fmt: skip

    def come(self, device_id, key=None, at=1.0):
        """Returns why a device was refused; nothing where it was taken in."""
        try:
            self.roster.enrol(device_id, key or f"key of {device_id}", at)
        except Rejected as rejected:
            return rejected.detail
        return ""

    def names(self):
        self.roster.flush()
        return [device.device for device in self.journal.devices()]


def test_a_key_enrols_only_so_many_ids_and_another_key_is_not_held_up():
    door = Door(max_ids_per_key=2)
    assert [door.come(name, key="k") for name in "abc"] == [
        "", "", "key k… has 2 devices, expected at most 2",
    ]  # fmt: skip
    assert door.come("a", key="k") == ""  # whom it knows it knows
    assert door.come("d") == ""
    door.open()
    assert "has 2 devices" in door.come("c", key="k")


def test_only_so_many_come_in_a_minute():
    door = Door(enrolments_per_minute=6)
    refused = [name for name in "abcdefgh" if door.come(name)]
    assert refused == ["g", "h"]
    door.now += 10.0
    assert not door.come("g")
    assert "more than 6 devices came in a minute" in door.come("h")


def test_in_a_full_fleet_who_never_delivered_and_was_not_heard_for_longest_makes_room():
    door = Door(max_devices=3)
    for at, name in enumerate("abc"):
        assert not door.come(name, at=float(at))
    door.roster.deliver("a")
    assert not door.come("d", at=9.0)
    assert door.names() == ["a", "c", "d"]
    assert not door.come("e", at=10.0)
    assert door.names() == ["a", "d", "e"]
    for name in "de":
        door.roster.deliver(name)
    assert door.come("f", at=11.0) == "the fleet is full: it holds 3 devices"
    assert door.roster.key("b") is None


def test_what_the_broker_has_kept_takes_nobodys_place():
    door = Door(max_devices=1)
    door.come("a")
    assert "full" in door.come("b", at=None)
    assert door.names() == ["a"]


def test_whom_the_owner_has_listed_comes_whatever_the_quotas_say():
    door = Door(max_devices=1, enrolments_per_minute=1)
    door.come("a")
    door.open({"b": "key of b"})
    assert not door.come("b")


def test_a_place_that_was_earned_is_kept_over_a_restart(make_header):
    door = Door(max_devices=1)
    door.come("a")
    door.journal.record(make_header(device_id="a"), at=0.0)
    door.open()
    assert "full" in door.come("b")


def test_the_journal_knows_how_many_rejections_it_only_counts():
    door = Door()
    door.come("a")
    for _ in range(3):
        door.roster.count_unlisted("a")
    door.roster.count_unlisted("stranger")
    door.roster.flush()
    assert [device.num_unlisted for device in door.journal.devices()] == [3]


def test_a_newcomer_is_written_down_with_others_and_is_known_before():
    door = Door()
    for name in "abc":
        assert not door.come(name)
    assert door.journal.devices() == []
    assert door.roster.key("a") == "key of a"
    assert "has key" in door.come("a", key="another")
    assert door.names() == ["a", "b", "c"]
    door.roster.refresh()  # reads the journal again
    assert door.roster.key("c") == "key of c"


def test_who_comes_and_loses_its_place_before_it_is_written_down_leaves_nothing():
    door = Door(max_devices=1)
    for at, name in enumerate("abc"):
        assert not door.come(name, at=float(at))
    assert door.names() == ["c"]
    assert not door.come("a", at=5.0)
    assert door.names() == ["a"]


def test_what_changes_while_it_is_written_beside_the_loop_or_is_refused_is_written_the_next_time():
    door = Door()
    for name in "ab":
        door.come(name)
    door.roster.flush()

    class Refusing:
        """A journal that takes nothing while the disk is full, and meanwhile a device is heard."""

        is_full = True

        def __getattr__(self, name):
            return getattr(door.journal, name)

        def save(self, devices):
            if self.is_full:
                roster.count_unlisted("b")
                raise DiskFull("no room")
            door.journal.save(devices)

    refusing = Refusing()
    roster = Roster(refusing, {}, is_open=True, limits=door.limits, timer=lambda: door.now)
    roster.count_unlisted("a")
    with pytest.raises(DiskFull):
        asyncio.run(roster.flush_beside())
    refusing.is_full = False
    asyncio.run(roster.flush_beside())
    assert [device.num_unlisted for device in door.journal.devices()] == [1, 1]
