"""One write to the disk for all verdicts that have gathered; nothing follows from one before it is there."""

import asyncio
from contextlib import asynccontextmanager, closing
from threading import Event

import pytest

from coordinator.intake.commits import MAX_PAUSE_S, Commits
from coordinator.ledger.records import Verdict
from coordinator.ledger.sqlite import SqliteJournal
from edge.errors import DiskFull, Rejected


class SlowJournal:
    """A journal whose writes wait for `gate`, and fail as often as `refuses` says."""

    def __init__(self, journal, refuses=0):
        self.journal, self.refuses = journal, refuses
        self.gate, self.groups = Event(), []
        self.gate.set()

    def record_all(self, verdicts):
        assert self.gate.wait(10)
        if self.refuses:
            self.refuses -= 1
            raise DiskFull("no room")
        self.groups.append([verdict.header.attempt for verdict in verdicts])
        return self.journal.record_all(verdicts)


class Line:
    """The line before a journal, and what has followed."""

    def __init__(self, tmp_path, make_header):
        self.header, self.folder = lambda number, **changes: make_header(attempt=number, **changes), tmp_path
        self.followed, self.said, self.pauses = [], [], []

    @asynccontextmanager
    async def open(self, refuses=0, **changes):
        with closing(SqliteJournal(self.folder, "home")) as journal:
            self.journal = SlowJournal(journal, refuses)
            self.commits = Commits(self.journal, self.said.append, self.sleep, **changes)
            running = asyncio.create_task(self.commits.run())
            try:
                yield self
            finally:
                self.journal.gate.set()
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    async def sleep(self, pause_s):
        self.pauses.append(pause_s)
        await asyncio.sleep(0)

    def put(self, number, rejected=None, **changes):
        header = self.header(number, **changes)
        return self.commits.put(
            Verdict(header, 1.0, rejected), lambda seq: self.followed.append((number, seq))
        )

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.002)


@pytest.fixture
def line(tmp_path, make_header):
    return Line(tmp_path, make_header)


def test_what_gathers_while_one_is_written_goes_down_in_one_step(line):
    async def way():
        async with line.open():
            line.journal.gate.clear()
            line.put(0)
            await asyncio.sleep(0.01)
            for number in range(1, 40):
                line.put(number)
            line.journal.gate.set()
            await line.until(lambda: len(line.followed) == 40)
            assert line.journal.groups == [[0], list(range(1, 40))]
            assert line.followed == [(number, number + 1) for number in range(40)]

    asyncio.run(way())


def test_nothing_follows_from_a_verdict_before_it_is_on_the_disk(line):
    async def way():
        async with line.open():
            line.journal.gate.clear()
            line.put(0)
            await asyncio.sleep(0.05)
            assert line.followed == []
            assert line.header(0).update in line.commits
            line.journal.gate.set()
            await line.until(lambda: line.followed)
            assert line.header(0).update not in line.commits

    asyncio.run(way())


def test_a_group_that_the_disk_refuses_is_kept_and_tried_again_ever_more_rarely(line):
    async def way():
        async with line.open(refuses=6):
            line.put(0)
            await line.until(lambda: line.followed)
            assert line.pauses == [0.5, 1.0, 2.0, 4.0, MAX_PAUSE_S, MAX_PAUSE_S]
            assert (set(line.said), line.journal.groups) == ({"no room"}, [[0]])

    asyncio.run(way())


def test_an_update_is_in_the_line_once_and_a_full_line_takes_no_more(line):
    async def way():
        async with line.open(most=2):
            line.journal.gate.clear()
            assert [line.put(number) for number in (0, 0, 1, 2)] == [True, False, True, False]
            line.journal.gate.set()
            await line.until(lambda: len(line.followed) == 2)
            assert line.put(2)

    asyncio.run(way())


def test_of_what_waits_it_is_known_which_attempt_it_counts_for(line):
    async def way():
        async with line.open():
            line.journal.gate.clear()
            line.put(3)
            line.put(4, rejected=Rejected("too-stale", "late"))
            other = line.header(3, num_steps=9)
            assert (line.commits.taken(other), line.commits.taken(line.header(4))) == (
                line.header(3).update, None,
            )  # fmt: skip
            line.journal.gate.set()
            await line.until(lambda: len(line.followed) == 2)
            assert line.commits.taken(other) is None

    asyncio.run(way())
