"""A file of the coordinator's on its way to this device: pulled in windows, kept on disk chunk by chunk."""

import asyncio
from collections.abc import Callable

from edge.errors import DiskFull, Rejected
from edge.protocol.chunks import num_chunks
from edge.protocol.messages import Want, encode_message
from edge.protocol.topics import Topics
from edge.storage.parts import PartFile
from edge.transport.base import Transport

WINDOW = 16  # chunks asked for at a time, the wire's bound


class Download:
    """A blob being received; chunks count whoever asked for them.

    Args:
        transport: A connected one.
        part: What to fetch, and where it grows; what is there already is not asked for again.
        want_topic: Where this device asks.
        patience_s: Without a chunk for this long, the window is asked for again.
    """

    def __init__(self, transport: Transport, part: PartFile, want_topic: str, patience_s: float) -> None:
        self.sha256 = part.sha256
        self.num_chunks = num_chunks(part.size_bytes, part.chunk_bytes)
        self._transport = transport
        self._part = part
        self._want_topic = want_topic
        self._patience_s = patience_s
        self._received = 0
        self._news = asyncio.Event()
        self._fault: DiskFull | None = None
        self._is_interrupted = False

    def receive(self, number: int, chunk: bytes) -> None:
        """Takes a chunk as it came from the broker."""
        try:
            self._received += self._part.write(number, chunk)
        except Rejected:
            return  # not of this blob: the rest of it is still to come
        except DiskFull as error:
            self._fault = error
        self._news.set()

    def interrupt(self) -> None:
        """Has `run` return: the coordinator may have no such blob any more."""
        self._is_interrupted = True
        self._news.set()

    async def run(self, topics: Topics, on_progress: Callable[[int], None]) -> bool:
        """Fetches what is missing, for as long as it comes.

        Args:
            topics: The fleet's.
            on_progress: Called with the number of chunks that are here.

        Returns:
            Whether everything is here; False when nothing came for `patience_s`, or after `interrupt`.

        Raises:
            DiskFull: A chunk found no room.
        """
        await self._transport.subscribe(topics.blob(self.sha256))
        while not self._part.is_complete:
            on_progress(self.num_chunks - sum(end - start for start, end in self._part.missing()))
            came = await self._window()
            if (not came or self._is_interrupted) and not self._part.is_complete:
                return False
        await self._transport.unsubscribe(topics.blob(self.sha256))
        return True

    async def _window(self) -> bool:
        """Asks for the next chunks; whether any came."""
        missing = self._part.missing()
        due = self._received + min(WINDOW, sum(end - start for start, end in missing))
        before = self._received
        want = Want(sha256=self.sha256, ranges=missing, window=WINDOW)
        await self._transport.publish(self._want_topic, encode_message(want))
        while self._received < due and not self._part.is_complete and not self._is_interrupted:
            self._news.clear()
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._news.wait()
            except TimeoutError:
                break
            if self._fault:
                fault, self._fault = self._fault, None
                raise fault
        return self._received > before
