"""Updates on their way out: header, chunks, receipt."""

import asyncio
import time
from collections.abc import Callable
from typing import BinaryIO

from edge.delivery.silence import Silence
from edge.delivery.window import Sending, heard, send_all
from edge.errors import MissingObject
from edge.protocol.merkle import Tree
from edge.protocol.messages import Receipt
from edge.protocol.patience import Patience
from edge.protocol.sending import Part, Push
from edge.protocol.signing import Signer
from edge.protocol.topics import Topics
from edge.storage.disk import room_for
from edge.storage.parts import read_tree
from edge.storage.spool import Entry
from edge.transport.base import Transport


class Uploader:
    """Sends updates, one at a time, each until its receipt is final.

    Args:
        transport: A connected one.
        topics: The fleet's.
        signer: Of this device: an envelope is never sent twice.
        patience_s: Without a receipt for this long, the header is sent again; once receipts have come, it is
            as long as they take here.
        silence: Is told of questions and answers; by default nobody is.
        clock: Seconds of any beginning.
    """

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        signer: Signer,
        patience_s: float,
        silence: Silence | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._topics = topics
        self._signer = signer
        self._patience = Patience(patience_s)
        self._silence = silence or Silence(lambda: None)
        self._clock = clock
        self._entry: Entry | None = None
        self._push: Push | None = None
        self._receipt_came = asyncio.Event()

    def receive(self, receipt: Receipt) -> None:
        """Takes a receipt whose signature was checked; those about other headers are left out."""
        entry = self._entry
        if self._push and entry and (receipt.update, receipt.header) == (entry.header.update, entry.digest):
            self._silence.heard()
            self._push.receive(receipt, self._clock())
            self._receipt_came.set()

    def interrupt(self) -> None:
        """Has the header sent again at once: the coordinator may have forgotten the update."""
        if self._push is not None:
            self._push.interrupt()
            self._receipt_came.set()

    async def send(self, entry: Entry) -> Receipt:
        """Sends an update, and returns its final receipt.

        Raises:
            DiskRefused: The update cannot be read now.
            MissingObject: It is not what was spooled: the disk has damaged it, and it would never arrive.
        """
        header = entry.header
        with room_for("reading", entry.folder):
            tree = await asyncio.to_thread(read_tree, entry.payload, header.size_bytes, header.chunk_bytes)
        if tree.root != header.root:
            raise MissingObject(f"{entry.payload}: is damaged on this disk")
        self._entry, self._push = entry, Push(tree.num_chunks, self._patience)
        try:
            with room_for("reading", entry.folder):
                file = entry.payload.open("rb")
            with file:
                return await self._send(entry, tree, file, self._push)
        finally:
            self._entry = self._push = None

    async def _send(self, entry: Entry, tree: Tree, file: BinaryIO, push: Push) -> Receipt:
        header = entry.header

        async def send(part: Part) -> None:
            topic = self._topics.up(header.device_id, header.update, part)
            if part == "header":
                self._silence.asked()
                content = self._signer.seal_body(topic, entry.body)
            else:
                with room_for("reading", entry.folder):
                    file.seek(part * header.chunk_bytes)
                    content = tree.proof(part) + file.read(header.chunk_bytes)
            await self._transport.publish(topic, content)
            push.sent(part, self._clock())

        def begin() -> Sending | None:
            part = push.next(self._clock(), self._transport.limits.max_in_flight)
            return None if part is None else send(part)

        while push.verdict is None:
            await send_all(begin)
            if push.verdict is None:
                await heard(self._receipt_came, push.wait_s(self._clock()))
        return push.verdict
