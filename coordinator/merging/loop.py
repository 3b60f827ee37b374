"""Makes the next version when it is time, and takes over the one that another process rolled back to."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from coordinator.announcing import Announcer
from coordinator.config import CoordinatorConfig
from coordinator.errors import MergeError
from coordinator.events.records import RolledBack, UpdateFiltered, UpdatesDiscarded, VersionMade
from coordinator.events.telling import Complaints, Tell
from coordinator.intake.roster import Roster
from coordinator.ledger.head import Head
from coordinator.ledger.records import Update, Version
from coordinator.ledger.retention import Retention
from coordinator.ledger.state import CoordinatorState
from coordinator.merging.merger import Merger
from coordinator.merging.pace import PaceNews
from coordinator.scoring import Scorer
from edge.errors import BackendError, DiskRefused

HASTE = 8  # merges in a row, after which what is known of devices is written down nevertheless


class Waits(NamedTuple):
    """How long the loop waits, in seconds."""

    poll_s: float = 0.25  # how soon a rollback by another process, or a time budget that ran out, is noticed
    settle_s: float = 2.0  # until it is known who is here; only where updates wait from before
    retry_s: float = 5.0  # after a disk that says no, or a calibration set that could not be read


class Hands(NamedTuple):
    """What the loop works with."""

    config: CoordinatorConfig
    state: CoordinatorState
    head: Head
    merger: Merger
    roster: Roster
    retention: Retention
    announcer: Announcer
    scorer: Scorer
    clock: Callable[[], float]  # Unix time in seconds
    timer: Callable[[], float]  # seconds of any beginning, never set back
    tell: Tell
    complain: Complaints


class MergeLoop:
    """Moves the fleet from version to version.

    Args:
        hands: What it works with.
        waits: How long it waits.
    """

    def __init__(self, hands: Hands, waits: Waits) -> None:
        self._hands = hands
        self._waits = waits
        self._pace = PaceNews()
        self._data_version = hands.state.journal.data_version()
        self._steps_in_haste = 0  # one merge after the other, without a pause
        self._unadopted: Version | None = None  # it is current, and the disk refused what is to follow

    async def run(self) -> None:
        """Makes versions until there are `max_versions`, and waits for their scores."""
        hands = self._hands
        hands.scorer.ask(hands.head.version, anyway=True)
        if hands.state.journal.waiting() and hands.config.buffer_size is None:
            await asyncio.sleep(self._waits.settle_s)
        while not 0 < hands.config.max_versions <= hands.head.version.version:
            try:
                await self._step()
            except (BackendError, DiskRefused, OSError) as error:
                hands.complain(str(error))
                await asyncio.sleep(self._waits.retry_s)
        await hands.scorer.finish()

    async def _step(self) -> None:
        hands = self._hands
        await hands.announcer.repeat()  # first: the fleet hears of its version whatever the disk says
        if self._unadopted is not None:
            await self._adopt(self._unadopted)
        await self._notice_rollback()
        buffer = self._ready()
        self._steps_in_haste = self._steps_in_haste + 1 if buffer else 0
        if self._steps_in_haste % HASTE == 0:
            await hands.roster.flush_beside()
        if buffer:
            await self._merge(buffer)
        elif renewed := hands.merger.renew(hands.head.version):
            await self._take(renewed)
        else:
            await asyncio.sleep(self._waits.poll_s)

    def _ready(self) -> list[Update]:
        """Returns what to merge now; tells how far the next version is where that has changed."""
        hands = self._hands
        able = hands.roster.able(min(hands.config.ranks))
        buffer, pace = hands.merger.ready(hands.head.standing, able)
        if not buffer:
            num_online = len(hands.roster.online())
            if news := self._pace.next(pace, num_online, len(able), hands.clock(), hands.timer()):
                hands.tell(news)
        return buffer

    async def _merge(self, buffer: list[Update]) -> None:
        hands, standing = self._hands, self._hands.head.standing
        try:
            made = await hands.merger.make(
                hands.head.version, buffer, standing, lambda: hands.retention.held(standing)
            )
        except MergeError as error:
            gone = hands.merger.discard(buffer, error)
            names = ", ".join(f"{one.id[:8]} of {one.device}" for one in gone)
            told = f"updates {names} left the buffer, they cannot be merged: {error}"
            hands.tell(UpdatesDiscarded(tuple(one.id for one in gone), "unmergeable", told))
            return
        if made is not None:
            await self._take(made)

    async def _take(self, made: Version) -> None:
        if made.report is not None:
            self._hands.tell(VersionMade(made.version, made.report))
            for one in made.report.shares:
                if one.reason:
                    self._hands.tell(UpdateFiltered(made.version, one.update, one.device, one.reason))
        await self._adopt(made)

    async def _adopt(self, version: Version) -> None:
        self._unadopted = version
        self._hands.head.move(version)
        await self._hands.announcer.announce()
        self._hands.scorer.ask(version)
        self._unadopted = None

    async def _notice_rollback(self) -> None:
        state = self._hands.state
        data_version = state.journal.data_version()
        if data_version == self._data_version:
            return
        self._data_version = data_version
        current = state.versions.current()
        if current and current.version != self._hands.head.version.version:
            self._hands.tell(RolledBack(current.version, current.parent))
            await self._adopt(current)
