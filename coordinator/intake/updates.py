"""The way of an update from its header to its receipt.

    header -> who signed it, is it wanted -> chunks -> payload -> is it sound -> journal -> receipt

A receipt is sent after the journal is on the disk, and never otherwise: where that fails, nothing is said,
the device asks again, and what was received is still here. Whatever comes again is answered again and
counted once. No message waits for a check or for the broker: both go on beside, in bounded lines. Where these
are full nothing is answered, and the device, which has it all in its spool, asks again. What comes here has
passed the gate: it is signed by the device that it is about. A verdict names the header that it is about by
its SHA-256, to the byte as the device signed it.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from msgspec import structs

from coordinator.events.records import UpdateAccepted, UpdateRejected
from coordinator.events.telling import Tell
from coordinator.intake.admission import Rules, check_header, check_id, check_payload
from coordinator.intake.checks import Checks
from coordinator.intake.open_uploads import Upload, Uploads
from coordinator.intake.receipts import Receipts
from coordinator.intake.roster import Roster
from coordinator.ledger.contract import Updates
from coordinator.ledger.head import Head, Standing
from coordinator.ledger.records import Update
from edge.errors import DiskRefused, Rejected
from edge.protocol.messages import MAX_DETAIL, Receipt, UpdateHeader
from edge.protocol.signing import Opened, Signer
from edge.protocol.topics import Topics
from edge.transport.base import Transport

AT_A_TIME = 4  # checks that run together, each with a payload in memory
NOT_RECEIPTED = "nothing is receipted until this is mended"


class Desk(NamedTuple):
    """What the intake works with."""

    transport: Transport
    topics: Topics
    signer: Signer  # of the coordinator
    journal: Updates
    roster: Roster
    uploads: Uploads
    rules: Rules
    head: Head
    clock: Callable[[], float]  # Unix time in seconds
    tell: Tell
    complain: Callable[[str], None]  # gets what keeps updates from being receipted
    timer: Callable[[], float] = time.monotonic  # seconds of any beginning, never set back


class Intake:
    """Receives updates, one message at a time.

    Args:
        desk: What it works with.
        check: Judges a whole payload, in a thread.
    """

    def __init__(
        self,
        desk: Desk,
        check: Callable[[UpdateHeader, bytes, Rules, Standing], object] = check_payload,
    ) -> None:
        self._desk = desk
        self._check = check
        self._checks = Checks(self._admit)
        self._receipts = Receipts(desk.transport, desk.topics, desk.signer)

    def recover(self) -> None:
        """Takes up what an earlier process was receiving; what was whole already is checked."""
        self._desk.uploads.recover(self._desk.journal)
        for upload in self._desk.uploads.whole():
            self._checks.add(upload)

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """Returns what has to run beside the messages: checks and receipts, for ever."""
        return [self._receipts.run(), *(self._checks.run() for _ in range(AT_A_TIME))]

    def take_header(self, device_id: str, update: str, opened: Opened[UpdateHeader]) -> None:
        """Judges a header; the first of an update opens it, a repeated one is answered with where it stands.

        Raises:
            Rejected: It contradicts itself, and is answered by nothing.
            DiskRefused: Nothing was answered.
        """
        desk, header = self._desk, opened.record
        check_id(header, update)
        desk.roster.finish(device_id, header.base_version, desk.clock())
        known = desk.journal.update(update)
        upload = desk.uploads.find(device_id, update)
        if known is not None:
            self._receipts.put(device_id, _numbered(_final(known, opened.digest), header, known.seq))
        elif upload and (upload.digest == opened.digest or update in self._checks):
            self._go_on(upload)
        else:
            if upload:  # the device has signed another header since
                desk.uploads.close(update)
            self._open(opened)

    def take_chunk(self, device_id: str, update: str, number: int, message: bytes) -> None:
        """Keeps a chunk of an update under way; the last one has it checked. Chunks of others are dropped.

        Raises:
            Rejected: It is no chunk of this update, whoever sent it.
            DiskRefused: The chunk is not kept, what was there before still is.
        """
        upload = self._desk.uploads.find(device_id, update)
        if upload is None or update in self._checks:
            return
        if self._desk.uploads.write(upload, number, message) and upload.is_whole:
            self._checks.add(upload)

    def drop(self, device_id: str, _key: str) -> None:
        """Forgets what a device is sending that may speak no longer."""
        self._desk.uploads.drop(device_id)

    def _open(self, opened: Opened[UpdateHeader]) -> None:
        header = opened.record
        try:
            check_header(header, self._desk.rules, self._desk.head.standing)
        except Rejected as rejected:
            self._settle(header, opened.digest, rejected)
        else:
            self._desk.uploads.begin(header, opened.body, self._checks)

    def _go_on(self, upload: Upload) -> None:
        if upload.is_whole:
            self._checks.add(upload)
        elif upload.part is not None:
            update, missing = upload.header.update, upload.part.received.missing()
            receipt = Receipt(update=update, header=upload.digest, status="missing", missing=missing)
            self._receipts.put(upload.header.device_id, receipt)

    async def _admit(self, upload: Upload) -> None:
        """Judges a whole upload; where the disk is full it stays, and its device asks again."""
        try:
            try:
                is_here = await asyncio.to_thread(self._inspect, upload)
                if self._desk.roster.is_barred(upload.header.device_id):  # since its header came
                    upload.payload.unlink(missing_ok=True)
                    return
            except Rejected as rejected:
                self._settle(upload.header, upload.digest, rejected)
                upload.payload.unlink(missing_ok=True)
            else:
                if is_here:
                    self._settle(upload.header, upload.digest, None)
                else:
                    self._go_on(upload)
        except (DiskRefused, OSError) as error:
            self._desk.complain(f"{error}; {NOT_RECEIPTED}")

    def _inspect(self, upload: Upload) -> bool:
        """Raises `Rejected` where the payload is not sound. The version may have changed since its header.

        Returns:
            Whether the payload is here; False where this disk has lost some of it, and it is to come again.
        """
        header, standing = upload.header, self._desk.head.standing
        check_header(header, self._desk.rules, standing)
        if upload.part is not None and not upload.payload.exists() and not upload.part.finish(upload.payload):
            return False
        self._check(header, upload.payload.read_bytes(), self._desk.rules, standing)
        return True

    def _settle(self, header: UpdateHeader, digest: str, rejected: Rejected | None) -> None:
        """Writes a verdict into the journal, and then gives its receipt."""
        desk = self._desk
        seq = desk.journal.record(header, desk.clock(), rejected)
        if desk.uploads.find(header.device_id, header.update):
            desk.uploads.close(header.update)
        facts = header.update, header.device_id, header.base_version
        desk.tell(
            UpdateRejected(*facts, rejected.reason, rejected.detail) if rejected else UpdateAccepted(*facts)
        )
        receipt = (
            _rejection(header.update, digest, rejected) if rejected else _acceptance(header.update, digest)
        )
        self._receipts.put(header.device_id, _numbered(receipt, header, seq))


def _final(update: Update, digest: str) -> Receipt:
    if update.status == "rejected":
        return _rejection(update.id, digest, Rejected(update.reason or "malformed", update.detail))
    return _acceptance(update.id, digest)


def _numbered(receipt: Receipt, header: UpdateHeader, seq: int) -> Receipt:
    """Adds a receipt's place in the journal, for devices that know of it."""
    return receipt if header.base_sha256 is None else structs.replace(receipt, seq=seq)


def _acceptance(update: str, digest: str) -> Receipt:
    return Receipt(update=update, header=digest, status="accepted")


def _rejection(update: str, digest: str, rejected: Rejected) -> Receipt:
    facts = {"reason": rejected.reason, "detail": rejected.detail[:MAX_DETAIL]}
    return Receipt(update=update, header=digest, status="rejected", **facts)  # type: ignore[arg-type]
