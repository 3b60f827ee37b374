"""Sends the chunks of files to whoever asks: once for all devices that ask at the time.

Wants are gathered for a moment, and their union is published on the blob's topic, where every device that is
downloading it listens.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO

from edge.delivery.window import Sending, read_chunk, send_all
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
        find: Returns where the file of a sha256 lies, or would lie.
        chunk_bytes: Of every blob.
        gather_s: How long wants are gathered.
        sleep: Waits.
    """

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        find: Callable[[str], Path],
        chunk_bytes: int,
        gather_s: float = 0.05,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._transport = transport
        self._topics = topics
        self._find = find
        self._chunk_bytes = chunk_bytes
        self._gather_s = gather_s
        self._sleep = sleep
        self._wanted: dict[str, Outgoing] = {}
        self._was_asked = asyncio.Event()

    def ask(self, want: Want) -> bool:
        """Notes what a device is missing; False where there is no such blob, or none any more."""
        try:
            size_bytes = self._find(want.sha256).stat().st_size
        except FileNotFoundError:
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
                    with self._find(sha256).open("rb") as file:
                        await self._publish(sha256, chunks, file)
                except FileNotFoundError:  # collected since it was asked for
                    continue

    async def _publish(self, sha256: str, chunks: Outgoing, file: BinaryIO) -> None:
        async def send(number: int) -> None:
            topic, chunk = self._topics.blob(sha256, number), read_chunk(file, number, self._chunk_bytes)
            await self._transport.publish(topic, chunk, expiry_s=EXPIRY_S)
            chunks.sent(number)

        def begin() -> Sending | None:
            number = chunks.next(self._transport.limits.max_in_flight)
            return None if number is None else send(number)

        await send_all(begin)
