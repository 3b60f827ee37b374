"""What the journal keeps of who may speak, and how another process sees it."""

from contextlib import closing

import pytest

from coordinator.ledger.sqlite import SqliteJournal
from edge.errors import StateError

A, B = "a" * 64, "b" * 64


@pytest.fixture
def journal(tmp_path):
    with closing(SqliteJournal(tmp_path, "home")) as opened:
        yield opened


def statuses(journal):
    return {update.attempt: update.status for update in journal.updates()}


def test_every_change_that_decides_is_seen_by_another_process_and_nothing_else(journal, tmp_path):
    with closing(SqliteJournal(tmp_path)) as other:
        seen = [journal.access.generation()]
        for change in (
            lambda: other.access.allow({"x": A}, 1.0),
            lambda: other.access.ban("x", 2.0),
            lambda: other.access.unban("x"),
            lambda: other.access.rotate("x", (A, B), 3.0),
            lambda: other.access.forget("x"),
        ):
            change()
            seen.append(journal.access.generation())
        other.note("pace", "1")
    assert seen == sorted(set(seen))
    assert journal.access.generation() == seen[-1]


def test_a_ban_discards_what_waits_and_what_comes_late(journal, make_header):
    journal.record(make_header(attempt=0), at=1.0)
    assert journal.access.ban("x", 2.0) == 1
    journal.record(make_header(attempt=1), at=3.0)
    journal.record(make_header(attempt=2, device_id="y"), at=3.0)
    assert journal.access.discard_late() == 1
    assert journal.access.discard_late() == 0
    assert statuses(journal) == {0: "discarded", 1: "discarded", 2: "accepted"}


def test_what_was_to_be_kept_is_kept_and_what_comes_late_is_not(journal, make_header):
    journal.record(make_header(attempt=0), at=1.0)
    assert journal.access.ban("x", 2.0, keeps_updates=True) == 0
    journal.record(make_header(attempt=1), at=3.0)
    assert journal.access.discard_late() == 1
    assert statuses(journal) == {0: "accepted", 1: "discarded"}


def test_a_journal_of_the_release_before_begins_with_nobody_said_anything_of(journal):
    assert (journal.access.all(), journal.access.generation(), journal.access.forgotten()) == ([], 0, [])


def test_whoever_is_banned_is_not_let_in_by_being_allowed(journal):
    journal.access.ban("x", 1.0)
    with pytest.raises(StateError, match="nobody was let in"):
        journal.access.allow({"x": A}, 2.0)
