"""Notices on their way to devices: how the coordinator stands to their keys (`AccessNotice`).

Only a key that is known is told anything, and each device at most so often: a device that is banned and asks
without end costs no more than one that asks once.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from edge.bucket import Buckets, Rate
from edge.protocol.enrolment import AccessNotice
from edge.protocol.signing import Signer
from edge.protocol.topics import Topics
from edge.transport.base import Transport

MOST = 1000  # that wait; what comes then is dropped, and its device asks again
OF_A_DEVICE = Rate(per_s=1 / 20, burst=3)


class Notices:
    """Signs notices and publishes them in order.

    Args:
        transport: Of the coordinator.
        topics: Of the fleet.
        signer: Of the coordinator.
        timer: Seconds of any beginning.
    """

    def __init__(
        self, transport: Transport, topics: Topics, signer: Signer, timer: Callable[[], float]
    ) -> None:
        self._transport = transport
        self._topics = topics
        self._signer = signer
        self._timer = timer
        self._buckets = Buckets(OF_A_DEVICE)
        self._waiting: deque[tuple[str, AccessNotice]] = deque()
        self._has_some = asyncio.Event()

    def is_due(self, device_id: str) -> bool:
        """Tells whether a device may be told something now."""
        return self._buckets.held(device_id, self._timer()) >= 1 and len(self._waiting) < MOST

    def put(self, device_id: str, notice: AccessNotice) -> None:
        """Takes a notice for a device, where one is due."""
        if len(self._waiting) < MOST and self._buckets.take(device_id, self._timer()):
            self._waiting.append((device_id, notice))
            self._has_some.set()

    async def run(self) -> None:
        """Publishes for ever."""
        while True:
            await self._has_some.wait()
            self._has_some.clear()
            while self._waiting:
                device_id, notice = self._waiting.popleft()
                topic = self._topics.device(device_id, "access")
                await self._transport.publish(topic, self._signer.seal(topic, notice))
