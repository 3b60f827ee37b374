"""Sends the chunks of files to whoever asks: once for all devices that ask at the time.

Wants are gathered for a moment, and their union is published on the blob's topic, where every device that is
downloading it listens.
"""

import asyncio
from collections.abc import Awaitable, Callable

from edge.delivery.blobs import Blobs
from edge.delivery.trees import Trees
from edge.delivery.window import Sending, send_all
from edge.errors import DiskRefused, MissingObject
from edge.protocol.chunks import num_chunks
from edge.protocol.messages import Want
from edge.protocol.sending import Outgoing
from edge.protocol.topics import Topics
from edge.transport.base import Transport

EXPIRY_S = 60  # a device that fell asleep asks again: a broker need not keep chunks for it


class Publisher:
    """Answers wants.

    Args:
        transport: Of the coordinator, entered.
        topics: Of the fleet.
        blobs: What can be wanted.
        trees: Theirs.
        chunk_bytes: Of every blob.
        gather_s: How long wants are gathered.
        sleep: Waits.
        complain: Gets what keeps chunks from being read; who wants them asks again.
    """

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        blobs: Blobs,
        trees: Trees,
        chunk_bytes: int,
        gather_s: float = 0.05,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        complain: Callable[[str], object] = lambda fault: None,
    ) -> None:
        self._transport = transport
        self._topics = topics
        self._blobs = blobs
        self._trees = trees
        self._chunk_bytes = chunk_bytes
        self._gather_s = gather_s
        self._sleep = sleep
        self._complain = complain
        self._wanted: dict[str, Outgoing] = {}
        self._was_asked = asyncio.Event()

    def ask(self, want: Want) -> bool:
        """Notes what a device is missing; False where there is no such blob, or none any more."""
        try:
            size_bytes = self._blobs.size(want.sha256)
        except MissingObject:
            return False
        chunks = self._wanted.setdefault(want.sha256, Outgoing(num_chunks(size_bytes, self._chunk_bytes)))
        chunks.add(want)
        self._was_asked.set()
        return True

    async def run(self) -> None:
        """Publishes for ever."""
        while True:
            await self._was_asked.wait()
            await self._sleep(self._gather_s)
            self._was_asked.clear()
            wanted, self._wanted = self._wanted, {}
            for sha256, chunks in wanted.items():
                try:
                    await self._publish(sha256, chunks)
                except MissingObject:  # collected since it was asked for
                    continue
                except DiskRefused as error:
                    self._complain(str(error))

    async def _publish(self, sha256: str, chunks: Outgoing) -> None:
        tree = await self._trees.of(sha256)

        async def send(number: int) -> None:
            topic, size = self._topics.blob(sha256, number), self._chunk_bytes
            chunk = await asyncio.to_thread(self._blobs.get, sha256, number * size, size)
            await self._transport.publish(topic, tree.proof(number) + chunk, expiry_s=EXPIRY_S)
            chunks.sent(number)

        def begin() -> Sending | None:
            number = chunks.next(self._transport.limits.max_in_flight)
            return None if number is None else send(number)

        await send_all(begin)
