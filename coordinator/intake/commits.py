"""Verdicts on their way to the disk: as many as have gathered go down in one transaction.

While one group is written, in a thread, the next gathers. So a lone update waits for nobody, and of a crowd
hundreds share one fsync. What follows from a verdict, its receipt first of all, happens when its group is on
the disk and never before. Where the disk refuses, the group is kept and tried again, ever more rarely; what
comes meanwhile waits behind it, and where the line is full its device is told nothing and asks again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from coordinator.ledger.contract import Updates
from coordinator.ledger.records import Verdict
from edge.errors import DiskRefused
from edge.protocol.messages import UpdateHeader

MOST = 512  # that wait or are written; with payloads of 64 KiB, 32 MiB
PAUSE_S, MAX_PAUSE_S = 0.5, 5.0  # before a group is tried again

Attempt = tuple[str, int, int]  # device, base version and number


class Waiting(NamedTuple):
    """A verdict, and what is to happen when it is on the disk."""

    verdict: Verdict
    follow: Callable[[int], None]  # gets its `seq`


class Commits:
    """The line before the journal.

    Args:
        journal: Takes them.
        complain: Gets why nothing can be written.
        sleep: Waits before a group is tried again.
        most: How many wait at most.
    """

    def __init__(
        self,
        journal: Updates,
        complain: Callable[[str], None],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        most: int = MOST,
    ) -> None:
        self._journal = journal
        self._complain = complain
        self._sleep = sleep
        self._most = most
        self._line: dict[str, Waiting] = {}  # by update, in order; those being written, too
        self._attempts: dict[Attempt, str] = {}  # of those in the line that count
        self._has_some = asyncio.Event()

    def __contains__(self, update: object) -> bool:
        """Tells whether an update's verdict waits, or is being written."""
        return update in self._line

    @property
    def is_full(self) -> bool:
        """Tells whether there is no room for another."""
        return len(self._line) >= self._most

    def taken(self, header: UpdateHeader) -> str | None:
        """Returns the update in the line that counts for the attempt of `header`, if one does."""
        return self._attempts.get(_attempt(header))

    def put(self, verdict: Verdict, follow: Callable[[int], None]) -> bool:
        """Takes a verdict; an update that is in the line already stays as it is.

        Args:
            verdict: What is to be written down.
            follow: Called in the event loop with its `seq` when it is on the disk.

        Returns:
            Whether it was taken; False where the line is full.
        """
        header = verdict.header
        if self.is_full or header.update in self._line:
            return False
        self._line[header.update] = Waiting(verdict, follow)
        if verdict.rejected is None:
            self._attempts[_attempt(header)] = header.update
        self._has_some.set()
        return True

    async def run(self) -> None:
        """Writes group after group, for ever."""
        with ThreadPoolExecutor(1, "journal") as thread:
            while True:
                await self._has_some.wait()
                self._has_some.clear()
                group = list(self._line.values())
                numbers = await self._write(thread, [one.verdict for one in group])
                for one, number in zip(group, numbers, strict=True):
                    self._forget(one.verdict)
                    one.follow(number)
                if self._line:
                    self._has_some.set()

    async def _write(self, thread: ThreadPoolExecutor, verdicts: list[Verdict]) -> list[int]:
        loop, pause_s = asyncio.get_running_loop(), PAUSE_S
        while True:
            try:
                return await loop.run_in_executor(thread, self._journal.record_all, verdicts)
            except DiskRefused as error:
                self._complain(str(error))
            await self._sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _forget(self, verdict: Verdict) -> None:
        del self._line[verdict.header.update]
        if self._attempts.get(_attempt(verdict.header)) == verdict.header.update:
            del self._attempts[_attempt(verdict.header)]


def _attempt(header: UpdateHeader) -> Attempt:
    return header.device_id, header.base_version, header.attempt
