"""Changes of access while a coordinator runs: `tunefleet device` and the list's file act within a second.

Other processes write into the journal, and people into the file. Both are looked at often, which costs a row
from SQLite and the file's time, and read only when they have changed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from coordinator.events.records import DeviceBarred
from coordinator.events.telling import Tell
from coordinator.intake.roster import Roster
from coordinator.ledger.contract import Journal
from edge.errors import EdgeError
from edge.protocol.topics import Topics

POLL_S = 0.5
LATE_S = 3.0  # for so long after a change, what is on its way into the journal may still come
RETAINED = ("hello", "state")  # what the broker keeps of a device


class Doorkeeper:
    """Lets changes of access take effect.

    Args:
        journal: Of a state folder, in which other processes may write.
        roster: The devices.
        bar: Get each device that may speak no longer, with its key.
        publish: Of the coordinator's transport.
        topics: Of the fleet.
        list_state: A value that changes when the list's file does.
        tell: Gets `barred`.
        complain: Gets what is wrong with the file.
        timer: Seconds of any beginning.
        poll_s: How often it looks.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        roster: Roster,
        bar: Sequence[Callable[[str, str], None]],
        publish: Callable[..., Awaitable[object]],
        topics: Topics,
        list_state: Callable[[], object],
        tell: Tell,
        complain: Callable[[str], None],
        timer: Callable[[], float] = time.monotonic,
        poll_s: float = POLL_S,
    ) -> None:
        self._journal, self._roster, self._bar, self._publish = journal, roster, bar, publish
        self._topics, self._list_state, self._tell, self._complain = topics, list_state, tell, complain
        self._poll_s, self._timer = poll_s, timer
        self._changed_at = float("-inf")
        self._may_be_forgotten = True  # before this session began
        self._seen = self._look()

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            try:
                await self._notice()
                await self._clear()
            except (EdgeError, OSError) as error:
                self._complain(f"who may speak stays as it was: {error}")
            await asyncio.sleep(self._poll_s)

    async def _notice(self) -> None:
        if self._timer() - self._changed_at < LATE_S:
            self._journal.access.discard_late()
        found = self._look()
        if found == self._seen:
            return
        barred = self._roster.refresh()
        self._seen, self._changed_at = found, self._timer()
        for device, key in barred.items():
            self._tell(DeviceBarred(device, key))
            for office in self._bar:
                try:
                    office(device, key)
                except (EdgeError, OSError) as error:  # it is out all the same
                    self._complain(f"{device}: {error}")
        self._may_be_forgotten = True

    async def _clear(self) -> None:
        """Takes what the broker retains of forgotten devices, so that their cards do not enrol them again."""
        if not self._may_be_forgotten:
            return
        taken = [device for device in self._journal.access.forgotten() if await self._take_retained(device)]
        if taken:
            self._journal.access.clear(taken)
        self._may_be_forgotten = False

    async def _take_retained(self, device: str) -> bool:
        """Empties what the broker retains of a device; tells whether it let it be emptied."""
        topics = [self._topics.device(device, kind) for kind in RETAINED]
        return False not in [await self._publish(topic, b"", retain=True) for topic in topics]

    def _look(self) -> tuple[int, object]:
        return self._journal.access.generation(), self._list_state()
