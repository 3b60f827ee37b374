"""A device and a coordinator without disk, loop or clock, and all that lies on the wire between them.

Signatures, trees, transfers and what they decide are the product's own (`edge.protocol`); what the intake
decides of them is written here once more, short enough to be seen whole. Time is a
number that somebody moves.
"""

import hashlib
from collections import deque
from typing import Any, NamedTuple

from edge.errors import ProtocolError
from edge.protocol.chunks import num_chunks, split_chunks
from edge.protocol.delta import update_id
from edge.protocol.merkle import Tree, proof_bytes, proven_chunk
from edge.protocol.messages import WINDOW, Receipt, UpdateHeader, Want, encode_message
from edge.protocol.patience import Patience
from edge.protocol.receiving import Pull, Received
from edge.protocol.sending import Outgoing, Part, Push
from edge.protocol.signing import NEVER, Keyring, Signer, Stamp, check_order, read_signed, stamp_of
from edge.protocol.topics import BlobTopic, ChunkTopic, HeaderTopic, ReceiptTopic, Topics, WantTopic

CHUNK_BYTES = 1024
PATIENCE_S = 10.0
DEVICE, FLEET = "lamp", "lab"
TOPICS = Topics(FLEET)
RECEIPTS, WANTS = TOPICS.device(DEVICE, "receipt"), TOPICS.device(DEVICE, "want")


class Message(NamedTuple):
    """Something on the wire."""

    topic: str
    payload: bytes


class Spooled(NamedTuple):
    """An update in the device's spool."""

    header: UpdateHeader
    body: bytes  # the header as it is signed, each time anew
    payload: bytes

    @property
    def digest(self) -> str:
        """Returns how receipts name its header."""
        return hashlib.sha256(self.body).hexdigest()


def spooled(payload: bytes, attempt: int) -> Spooled:
    """Returns an update as a device writes it into its spool."""
    sha256 = hashlib.sha256(payload).hexdigest()
    header = UpdateHeader(
        update=update_id(DEVICE, 0, attempt, sha256, None), fleet=FLEET, device_id=DEVICE, tier="r4",
        base_version=0, base="b" * 64, attempt=attempt, sha256=sha256,
        root=Tree(split_chunks(payload, CHUNK_BYTES)).root, size_bytes=len(payload), chunk_bytes=CHUNK_BYTES,
        encoding="f32", num_examples=1, num_tokens=1, num_steps=1, seconds=1.0, loss_before=1.0,
        loss_after=1.0,
    )  # fmt: skip
    return Spooled(header, encode_message(header), payload)


class Device:
    """The sending end of updates, and the receiving end of one blob.

    Args:
        private: Its key.
        coordinator: The public key that it has pinned.
        blob: What it is to download; known here to check what came.
    """

    def __init__(self, private: bytes, coordinator: str, blob: bytes) -> None:
        self.spool: deque[Spooled] = deque()
        self.dropped: dict[str, Receipt] = {}  # by the digest of the header
        self.tree = Tree(split_chunks(blob, CHUNK_BYTES))
        self._sha256 = hashlib.sha256(blob).hexdigest()
        self.kept = bytearray(len(blob))
        self.received = Received(len(blob), CHUNK_BYTES)
        self.seen = NEVER
        self._private, self._coordinator = private, coordinator
        self._keyring = Keyring()
        self._epoch = 0
        self.begin()

    def begin(self) -> None:
        """Begins a session, as after a kill: the disk is there, what was under way is not."""
        self._epoch += 1
        self.signer = Signer(self._private, self._epoch)
        self.push: Push | None = None
        self.patience = Patience(PATIENCE_S)
        self.flying: list[Part] = []
        self.pull = Pull(self.received, PATIENCE_S)

    def send(self, now: float, window: int) -> Message | None:
        """Sends the next part of the oldest update, if any is due."""
        if not self.spool:
            return None
        entry = self.spool[0]
        if self.push is None:
            self.push = Push(num_chunks(len(entry.payload), CHUNK_BYTES), self.patience)
        part = self.push.next(now, window)
        if part is None:
            return None
        self.flying.append(part)
        topic = TOPICS.up(DEVICE, entry.header.update, part)
        if part == "header":
            return Message(topic, self.signer.seal_body(topic, entry.body))
        tree = Tree(split_chunks(entry.payload, CHUNK_BYTES))
        start = part * CHUNK_BYTES
        return Message(topic, tree.proof(part) + entry.payload[start : start + CHUNK_BYTES])

    def acknowledge(self, place: int, now: float) -> None:
        """Hears from the broker that it has one of the parts under way."""
        assert self.push
        self.push.sent(self.flying.pop(place), now)

    def ask(self, now: float) -> Message | None:
        """Asks for more of its blob, if it is time to."""
        if self.pull.is_over:
            self.pull = Pull(self.received, PATIENCE_S)
        ranges = self.pull.ask(now)
        if not ranges:
            return None
        self.pull.asked(now)
        want = Want(sha256=self._sha256, ranges=ranges, window=WINDOW)
        return Message(WANTS, self.signer.seal(WANTS, want))

    def hear(self, message: Message, now: float) -> None:
        """Takes whatever comes, from whomever."""
        try:
            match TOPICS.parse(message.topic):
                case ReceiptTopic(device_id="lamp"):
                    self._take_receipt(message, now)
                case BlobTopic() as topic:
                    self._take_chunk(topic, message.payload)
        except ProtocolError:
            return

    def _take_receipt(self, message: Message, now: float) -> None:
        signed = read_signed(message.payload)
        if signed.key != self._coordinator:
            return
        stamp = stamp_of(signed)
        check_order(stamp, self.seen, "receipt", again=False)
        receipt = self._keyring.open(message.topic, signed, Receipt).record
        self.seen = stamp
        if not self.spool or self.push is None or receipt.header != self.spool[0].digest:
            return
        self.push.receive(receipt, now)
        if self.push.verdict is not None:
            self.dropped[self.spool.popleft().digest] = self.push.verdict
            self.push, self.flying = None, []

    def _take_chunk(self, topic: BlobTopic, message: bytes) -> None:
        if topic.sha256 == self._sha256:
            take(self.received, self.kept, topic.number, message, self.tree.root, CHUNK_BYTES)


class Upload(NamedTuple):
    """An update that is being received."""

    header: UpdateHeader
    digest: str
    content: bytearray
    received: Received


def take(
    received: Received, content: bytearray, number: int, message: bytes, root: str, chunk_bytes: int
) -> bool:
    """Keeps a chunk that comes with its proof, as `edge.storage.parts` does; False where it was here already.

    Raises:
        Rejected: It is no chunk of this payload.
    """
    if not received.lacks(number, len(message) - proof_bytes(number, received.total)):
        return False
    chunk = proven_chunk(message, number, received.total, root)
    content[number * chunk_bytes : number * chunk_bytes + len(chunk)] = chunk
    received.take(number)
    return True


class Coordinator:
    """The receiving end of updates, and the sending end of one blob.

    Args:
        private: Its key.
        device: The device's public key, enrolled.
        blob: What it serves.
    """

    def __init__(self, private: bytes, device: str, blob: bytes) -> None:
        self.journal: dict[str, Receipt] = {}  # by update: its verdict
        self.counted: list[tuple[str, bytes]] = []  # accepted: update and payload, in order
        self.open: dict[str, Upload] = {}
        self.seen: dict[str, Stamp] = {}
        self.is_busy = False
        self.num_junk = 0
        self._private, self._device = private, device
        self._blob, self._tree = blob, Tree(split_chunks(blob, CHUNK_BYTES))
        self._keyring = Keyring()
        self._epoch = 0
        self.begin()

    def begin(self) -> None:
        """Begins a session, as after a kill: journal and parts are there."""
        self._epoch += 1
        self.signer = Signer(self._private, self._epoch)
        self.outgoing = Outgoing(num_chunks(len(self._blob), CHUNK_BYTES))
        self.flying: list[int] = []

    def hear(self, message: Message) -> list[Message]:
        """Takes whatever comes, from whomever, and returns what it answers."""
        try:
            match TOPICS.parse(message.topic):
                case WantTopic(device_id="lamp"):
                    self.outgoing.add(self._opened(message, Want, "want")[0])
                case HeaderTopic(device_id="lamp", update=update):
                    return self._take_header(message, update)
                case ChunkTopic(device_id="lamp", update=update, number=number):
                    return self._take_chunk(update, number, message.payload)
            return []
        except ProtocolError:
            self.num_junk += 1
            return []

    def send_chunk(self, window: int) -> Message | None:
        """Sends the next chunk of the blob that is wanted, if there is one."""
        number = self.outgoing.next(window)
        if number is None:
            return None
        self.flying.append(number)
        start = number * CHUNK_BYTES
        topic = TOPICS.blob(hashlib.sha256(self._blob).hexdigest(), number)
        return Message(topic, self._tree.proof(number) + self._blob[start : start + CHUNK_BYTES])

    def acknowledge(self, place: int) -> None:
        """Hears from the broker that it has one of the chunks under way."""
        self.outgoing.sent(self.flying.pop(place))

    def _opened(self, message: Message, kind, name: str):  # type: ignore[no-untyped-def]
        signed = read_signed(message.payload)
        if signed.key != self._device:
            raise ProtocolError("another key")
        stamp = stamp_of(signed)
        check_order(stamp, self.seen.get(name, NEVER), name, again=False)
        opened = self._keyring.open(message.topic, signed, kind)
        self.seen[name] = stamp
        return opened.record, opened.digest

    def _take_header(self, message: Message, update: str) -> list[Message]:
        header, digest = self._opened(message, UpdateHeader, "header")
        expected = update_id(DEVICE, header.base_version, header.attempt, header.sha256, header.base_sha256)
        if not update == header.update == expected:
            raise ProtocolError("another update's header")
        if update in self.journal:
            verdict = self.journal[update]
            return [self._say(update, digest, verdict.status, reason=verdict.reason)]
        upload = self.open.get(update)
        if upload and upload.digest == digest:
            return self._answer(upload)
        if self.is_busy:
            return [self._say(update, digest, "busy")]
        self.open[update] = upload = Upload(
            header, digest, bytearray(header.size_bytes), Received(header.size_bytes, header.chunk_bytes)
        )
        return self._settle(upload) if upload.received.is_complete else []

    def _take_chunk(self, update: str, number: int, message: bytes) -> list[Message]:
        upload = self.open.get(update)
        if upload is None:
            return []
        header, received = upload.header, upload.received
        is_new = take(received, upload.content, number, message, header.root, header.chunk_bytes)
        return self._settle(upload) if is_new and received.is_complete else []

    def _answer(self, upload: Upload) -> list[Message]:
        if upload.received.is_complete:
            return self._settle(upload)
        return [self._say(upload.header.update, upload.digest, "missing", missing=upload.received.missing())]

    def _settle(self, upload: Upload) -> list[Message]:
        """Gives the verdict: of an attempt that is a multiple of five, that it is too stale."""
        header, content = upload.header, bytes(upload.content)
        if hashlib.sha256(content).hexdigest() != header.sha256:  # the disk has lost what came
            upload.received.forget()
            return self._answer(upload)
        del self.open[header.update]
        status, reason = ("rejected", "too-stale") if header.attempt % 5 == 4 else ("accepted", None)
        verdict = Receipt(update=header.update, header=upload.digest, status=status, reason=reason)
        if status == "accepted":
            self.counted.append((header.update, content))
        self.journal[header.update] = verdict
        return [self._say(header.update, upload.digest, status, reason=reason)]

    def _say(self, update: str, digest: str, status: str, **facts: Any) -> Message:
        receipt = Receipt(update=update, header=digest, status=status, **facts)  # type: ignore[arg-type]
        return Message(RECEIPTS, self.signer.seal(RECEIPTS, receipt))
