"""Files on their way to this device: pulled in windows, kept on disk chunk by chunk."""

import asyncio
import logging
import time
from collections.abc import Callable

from edge.delivery.silence import Silence
from edge.delivery.window import heard
from edge.errors import BrokerRefused, DiskRefused, Rejected
from edge.protocol.messages import WINDOW, Want
from edge.protocol.receiving import Pull
from edge.protocol.signing import Signer
from edge.protocol.topics import Topics
from edge.storage.parts import PartFile
from edge.transport.base import Transport

LOG = logging.getLogger(__name__)


class Downloader:
    """Fetches files, one at a time; chunks count whoever asked for them.

    Args:
        transport: A connected one.
        topics: The fleet's.
        device_id: Who asks.
        signer: Of this device.
        patience_s: Without a chunk for this long, the window is asked for again.
        silence: Is told of questions and answers; by default nobody is.
        clock: Seconds of any beginning.

    Attributes:
        num_junk: Chunks that did not belong to what is fetched; somebody else had sent them.
    """

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        device_id: str,
        signer: Signer,
        patience_s: float,
        silence: Silence | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._topics = topics
        self._signer = signer
        self._want_topic = topics.device(device_id, "want")
        self._patience_s = patience_s
        self._silence = silence or Silence(lambda: None)
        self._clock = clock
        self._part: PartFile | None = None
        self._pull: Pull | None = None
        self._fault: DiskRefused | None = None
        self._chunk_came = asyncio.Event()
        self.num_junk = 0

    def receive(self, sha256: str, number: int, message: bytes) -> None:
        """Takes a chunk with its proof as it came from the broker; those of other files are left out."""
        if self._part is None or sha256 != self._part.sha256:
            return
        try:
            if self._part.write(number, message):
                self._silence.heard()
        except Rejected:
            self.num_junk += 1  # not of this file: the rest of it is still to come
            return
        except DiskRefused as error:
            self._fault = error
        self._chunk_came.set()

    def interrupt(self) -> None:
        """Ends a `fetch` under way: the coordinator may have no such file any more."""
        if self._pull is not None:
            self._pull.give_up()
            self._chunk_came.set()

    async def fetch(self, part: PartFile, on_progress: Callable[[int], None]) -> bool:
        """Fetches what is missing, for as long as it comes.

        Args:
            part: What to fetch, and where it grows; what is there already is not asked for again.
            on_progress: Called with the number of chunks that are here.

        Returns:
            Whether everything is here; False when nothing came for `patience_s`, or after `interrupt`.

        Raises:
            DiskRefused: A chunk could not be kept.
        """
        self._part, self._pull, self._fault = part, Pull(part.received, self._patience_s), None
        try:
            if not await self._listen_to(part.sha256):
                return False
            is_here = await self._fetch(part, self._pull, on_progress)
            if is_here:
                await self._transport.unsubscribe(self._topics.blob(part.sha256))
            return is_here
        finally:
            self._part = self._pull = None

    async def _listen_to(self, sha256: str) -> bool:
        """Subscribes to a file's chunks; where the broker forbids it nothing comes for a while."""
        try:
            await self._transport.subscribe(self._topics.blob(sha256))
        except BrokerRefused as error:
            LOG.warning("%s; allow this client's user to read there", error)
            await heard(self._chunk_came, self._patience_s)
            return False
        return True

    async def _fetch(self, part: PartFile, pull: Pull, on_progress: Callable[[int], None]) -> bool:
        while not part.received.is_complete:
            if ranges := pull.ask(self._clock()):
                on_progress(part.received.total - part.received.num_missing)
                self._silence.asked()
                want = Want(sha256=part.sha256, ranges=ranges, window=WINDOW)
                await self._transport.publish(self._want_topic, self._signer.seal(self._want_topic, want))
                pull.asked(self._clock())
            elif pull.is_over:
                return False
            await heard(self._chunk_came, pull.wait_s(self._clock()))
            if self._fault is not None:
                raise self._fault
        return True
