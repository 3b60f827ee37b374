"""Whole uploads that wait for their check: seconds for a large one, and no message waits for it.

Checks run a few at a time, devices in turns, and one device's one after the other in the order in which its
uploads became whole: so a device holds up nobody but itself. What waits lies on the disk; here is its name.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from coordinator.intake.open_uploads import Upload


class Checks:
    """The line before admission.

    Args:
        admit: Takes an upload through its check; returns when nothing more is to be done with it.
    """

    def __init__(self, admit: Callable[[Upload], Awaitable[None]]) -> None:
        self._admit = admit
        self._lines: dict[str, deque[Upload]] = {}  # by device; its first is being checked, or next
        self._turns: asyncio.Queue[str] = asyncio.Queue()
        self._updates: set[str] = set()

    def __contains__(self, update: object) -> bool:
        """Tells whether an update waits, or is being checked."""
        return update in self._updates

    def add(self, upload: Upload) -> None:
        """Has an upload checked; one that waits already waits once."""
        header = upload.header
        if header.update in self._updates:
            return
        self._updates.add(header.update)
        line = self._lines.setdefault(header.device_id, deque())
        line.append(upload)
        if len(line) == 1:
            self._turns.put_nowait(header.device_id)

    async def run(self) -> None:
        """Checks one after the other, for ever; as many of these as checks may run together."""
        while True:
            device_id = await self._turns.get()
            line = self._lines[device_id]
            await self._admit(line[0])
            self._updates.discard(line.popleft().header.update)
            if line:
                self._turns.put_nowait(device_id)
            else:
                del self._lines[device_id]
