"""Sends the chunks of versions to whoever asks: once for all devices that ask at the time.

Wants are gathered for a moment, and their union is published on the blob's topic, where every device that is
downloading it listens. A want is clipped to the blob and to its window before anything walks it, so a hostile
one costs nothing.
"""

import asyncio

from coordinator.errors import MissingObject
from coordinator.ledger.versions import VersionStore
from edge.protocol.chunks import chunk_numbers, first_chunks, merge_ranges, num_chunks
from edge.protocol.messages import Want
from edge.protocol.topics import Topics
from edge.transport.base import Transport

EXPIRY_S = 60  # a device that fell asleep asks again: a broker need not keep chunks for it


class Publisher:
    """Answers wants.

    Args:
        transport: Of the coordinator, entered.
        topics: Of the fleet.
        versions: Holds the blobs.
        chunk_bytes: Of every blob.
        gather_s: How long wants are gathered.
    """

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        versions: VersionStore,
        chunk_bytes: int,
        gather_s: float = 0.05,
    ) -> None:
        self._transport = transport
        self._topics = topics
        self._versions = versions
        self._chunk_bytes = chunk_bytes
        self._gather_s = gather_s
        self._wanted: dict[str, set[int]] = {}
        self._news = asyncio.Event()

    def ask(self, want: Want) -> bool:
        """Notes what a device is missing; False where there is no such blob, or none any more."""
        try:
            size = self._versions.objects.size(want.sha256)
        except MissingObject:
            return False
        ranges = first_chunks(merge_ranges(want.ranges, num_chunks(size, self._chunk_bytes)), want.window)
        self._wanted.setdefault(want.sha256, set()).update(chunk_numbers(ranges))
        self._news.set()
        return True

    async def run(self) -> None:
        """Publishes for ever."""
        while True:
            await self._news.wait()
            await asyncio.sleep(self._gather_s)
            self._news.clear()
            wanted, self._wanted = self._wanted, {}
            for sha256, numbers in wanted.items():
                await self._publish(sha256, sorted(numbers))

    async def _publish(self, sha256: str, numbers: list[int]) -> None:
        """In slices of the transport's window, so that only one slice is in memory."""
        step = max(self._transport.limits.max_in_flight, 1)
        for start in range(0, len(numbers), step):
            async with asyncio.TaskGroup() as tasks:
                for number, chunk in self._read(sha256, numbers[start : start + step]):
                    topic = self._topics.blob(sha256, number)
                    tasks.create_task(self._transport.publish(topic, chunk, expiry_s=EXPIRY_S))

    def _read(self, sha256: str, numbers: list[int]) -> list[tuple[int, bytes]]:
        try:
            objects, size = self._versions.objects, self._chunk_bytes
            return [(number, objects.get(sha256, number * size, size)) for number in numbers]
        except MissingObject:  # collected since it was asked for
            return []
