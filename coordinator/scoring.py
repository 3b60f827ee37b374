"""Scores versions on held-out data, beside the loop: a fleet learns on while nobody can tell how well."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from converters.adapter import LoraAdapter
from converters.errors import TunefleetError
from coordinator.events.records import VersionScored
from coordinator.events.telling import Complaints, Tell
from coordinator.ledger.records import Version
from coordinator.ledger.versions import VersionStore
from edge.errors import DiskRefused

AGAIN_S = 5.0


class Quality(NamedTuple):
    """How good a version is on the coordinator's evaluation data."""

    loss: float  # nats per label
    exact: float  # share of examples reproduced exactly


Score = Callable[[LoraAdapter], Quality]


class Scorer:
    """Scores one version after another.

    Args:
        score: Called in a thread; None scores nothing.
        versions: Where scores are kept.
        every: Every so many versions one is scored.
        tell: Gets `scored`.
        complain: Gets what keeps a version from being scored.
        sleep: Waits for a disk that says no.
    """

    def __init__(
        self,
        score: Score | None,
        versions: VersionStore,
        every: int,
        tell: Tell,
        complain: Complaints,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._score = score
        self._versions = versions
        self._every = every
        self._tell = tell
        self._complain = complain
        self._sleep = sleep
        self._due: asyncio.Queue[Version] = asyncio.Queue()

    def ask(self, version: Version, *, anyway: bool = False) -> None:
        """Has a version scored, where it is not and its turn has come.

        Args:
            version: A version.
            anyway: Whatever its number, as the first one of a session is.
        """
        if self._score and version.loss is None and (anyway or version.version % self._every == 0):
            self._due.put_nowait(version)

    async def finish(self) -> None:
        """Waits until all that were asked for are scored."""
        await self._due.join()

    async def run(self) -> None:
        """Scores for ever."""
        while True:
            version = await self._due.get()
            try:
                await self._score_one(version.version)
            except TunefleetError as error:
                self._complain(f"version {version.version} is not scored: {error}")
            self._due.task_done()

    async def _score_one(self, number: int) -> None:
        assert self._score is not None  # else nothing is asked for
        adapter = self._versions.whole(self._versions.version(number))
        quality = await asyncio.to_thread(self._score, adapter)
        await self._keep(number, quality)
        self._tell(VersionScored(number, *quality))

    async def _keep(self, number: int, quality: Quality) -> None:
        """Writes a score down; a disk that says no is waited for, for a score takes long to make."""
        while True:
            try:
                return self._versions.score(number, *quality)
            except DiskRefused as error:
                self._complain(str(error))
                await self._sleep(AGAIN_S)
