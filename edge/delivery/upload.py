"""One update on its way to the coordinator: header, chunks, receipt."""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import BinaryIO

from edge.protocol.chunks import chunk_numbers, merge_ranges, num_chunks
from edge.protocol.messages import Range, Receipt
from edge.protocol.topics import Topics
from edge.storage.spool import Entry
from edge.transport.base import Transport

WINDOW = 16  # chunks under way at a time, the wire's bound
MAX_PATIENCE = (
    8  # a coordinator that stays silent is asked ever more rarely, up to this many times `patience_s`
)


class Upload:
    """An update being sent until its receipt is final.

    What the coordinator already has is not known here after a restart: sending starts at the beginning, and a
    receipt that comes meanwhile (`missing`, or the verdict) cuts it short.
    """

    def __init__(self, transport: Transport, topics: Topics, entry: Entry, patience_s: float) -> None:
        self.header = entry.header
        self._entry = entry
        self._transport = transport
        self._topics = topics
        self._patience_s = patience_s
        self._total = num_chunks(entry.header.size_bytes, entry.header.chunk_bytes)
        self._queue: deque[int] = deque()
        self._verdict: Receipt | None = None
        self._news = asyncio.Event()
        self._is_interrupted = False

    def interrupt(self) -> None:
        """Has `run` begin again with the header: the coordinator may have forgotten the update."""
        self._is_interrupted = True
        self._news.set()

    def receive(self, receipt: Receipt) -> None:
        """Takes a receipt whose signature was checked."""
        if receipt.status == "missing":
            self._fill(receipt.missing)
        else:
            self._verdict = receipt
        self._news.set()

    async def run(self) -> Receipt:
        """Sends until the receipt is final, and returns it."""
        patience = 1.0
        self._fill([(0, self._total)])
        while self._verdict is None:
            await self._publish("header", self._entry.signed)
            await self._send_all()
            is_heard = await self._hear(patience * self._patience_s)
            while is_heard and self._verdict is None and not self._is_interrupted:
                await self._send_all()
                is_heard = await self._hear(self._patience_s)
            patience = 1.0 if self._is_interrupted else min(2 * patience, MAX_PATIENCE)
            self._is_interrupted = False
        return self._verdict

    def _fill(self, ranges: Iterable[Range]) -> None:
        self._queue = deque(chunk_numbers(merge_ranges(ranges, self._total)))

    async def _send_all(self) -> None:
        with self._entry.payload.open("rb") as file:
            window = min(WINDOW, self._transport.limits.max_in_flight, max(1, len(self._queue)))
            async with asyncio.TaskGroup() as group:
                for _ in range(window):
                    group.create_task(self._send_some(file))

    async def _send_some(self, file: BinaryIO) -> None:
        size = self.header.chunk_bytes
        while self._queue and self._verdict is None:
            number = self._queue.popleft()
            file.seek(number * size)
            await self._publish(number, file.read(size))

    async def _publish(self, part: int | str, payload: bytes) -> None:
        topic = self._topics.up(self.header.device_id, self.header.update, part)
        await self._transport.publish(topic, payload)

    async def _hear(self, patience_s: float) -> bool:
        """Whether a receipt came since the last time, or comes within `patience_s`."""
        try:
            async with asyncio.timeout(patience_s):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True
