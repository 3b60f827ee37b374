"""Receipts on their way out: who has one to give does not wait until the broker has taken it."""

import asyncio
from collections import deque

from edge.delivery.window import Sending, send_all
from edge.protocol.messages import Receipt
from edge.protocol.signing import Signer
from edge.protocol.topics import Topics
from edge.transport.base import Transport

MOST = 1000  # that wait; what comes then is dropped, and its device asks again


class Receipts:
    """Signs receipts and publishes them in order, as many at a time as the broker takes.

    Args:
        transport: Of the coordinator.
        topics: Of the fleet.
        signer: Of the coordinator.
        most: How many wait at most.
    """

    def __init__(self, transport: Transport, topics: Topics, signer: Signer, most: int = MOST) -> None:
        self._transport = transport
        self._topics = topics
        self._signer = signer
        self._most = most
        self._waiting: deque[tuple[str, Receipt]] = deque()
        self._num_flying = 0
        self._has_some = asyncio.Event()

    def put(self, device_id: str, receipt: Receipt) -> None:
        """Takes a receipt for a device."""
        if len(self._waiting) < self._most:
            self._waiting.append((device_id, receipt))
            self._has_some.set()

    async def run(self) -> None:
        """Publishes for ever."""
        while True:
            await self._has_some.wait()
            self._has_some.clear()
            await send_all(self._begin)

    def _begin(self) -> Sending | None:
        if not self._waiting or self._num_flying >= max(self._transport.limits.max_in_flight, 1):
            return None
        self._num_flying += 1
        return self._send(*self._waiting.popleft())

    async def _send(self, device_id: str, receipt: Receipt) -> None:
        try:
            topic = self._topics.device(device_id, "receipt")
            await self._transport.publish(topic, self._signer.seal(topic, receipt))
        finally:
            self._num_flying -= 1
