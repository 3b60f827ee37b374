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

from coordinator.events.records import FleetEvent, UpdateAccepted, UpdateRefused, UpdateRejected
from coordinator.events.telling import Complaints, Tell
from coordinator.intake.admission import Rules, Sound, check_header, check_id, check_payload
from coordinator.intake.allowance import Allowance
from coordinator.intake.attempts import Attempts
from coordinator.intake.checks import Checks
from coordinator.intake.norms import Norms
from coordinator.intake.open_uploads import Upload, Uploads
from coordinator.intake.receipts import Receipts
from coordinator.intake.roster import Roster
from coordinator.ledger.contract import Updates
from coordinator.ledger.head import Head, Standing
from coordinator.ledger.records import Refusal, Update
from edge.errors import DiskRefused, Rejected
from edge.protocol.messages import MAX_DETAIL, Receipt, UpdateHeader
from edge.protocol.signing import Opened, Signer
from edge.protocol.tiers import tier_rank
from edge.protocol.topics import Topics
from edge.transport.base import Transport

AT_A_TIME = 4  # checks that run together, each with a payload in memory
EXPIRE_EVERY_S = 60.0
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
    allowance: Allowance
    attempts: Attempts
    norms: Norms
    head: Head
    clock: Callable[[], float]  # Unix time in seconds
    tell: Tell
    complain: Complaints  # gets what keeps updates from being receipted
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
        check: Callable[[UpdateHeader, bytes, Rules, Standing], Sound] = check_payload,
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
        return [self._receipts.run(), self._expire(), *(self._checks.run() for _ in range(AT_A_TIME))]

    def take_header(self, device_id: str, update: str, opened: Opened[UpdateHeader]) -> None:
        """Judges a header; the first of an update opens it, a repeated one is answered with where it stands.

        Raises:
            DiskRefused: Nothing was answered.
        """
        desk, header = self._desk, opened.record
        if not desk.allowance.hears_header(device_id):
            desk.complain(f"{device_id} offers updates too often; some are not answered", "offers")
            return
        try:
            check_id(header, update)
        except Rejected as rejected:
            self._refuse(device_id, update, opened.digest, rejected)
            return
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

    def _refuse(self, device_id: str, update: str, digest: str, rejected: Rejected) -> None:
        """Answers a header that contradicts itself; about the update that it names it says nothing."""
        desk = self._desk
        desk.journal.refuse(Refusal(desk.clock(), device_id, update, rejected.reason, rejected.detail))
        desk.tell(UpdateRefused(update, device_id, rejected.reason, rejected.detail))
        self._receipts.put(device_id, _rejection(update, digest, rejected))

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
        desk, header = self._desk, opened.record
        try:
            check_header(header, desk.rules, desk.head.standing)
            desk.attempts.check(header)
        except Rejected as rejected:
            self._settle(header, opened.digest, rejected)
            return
        crowded = desk.allowance.crowded(header.device_id, header.size_bytes)
        if not crowded and desk.uploads.begin(header, opened.body, self._checks) is None:
            crowded = "too many updates are under way, and all of them move"
        if crowded:
            busy = Receipt(update=header.update, header=opened.digest, status="busy", detail=crowded)
            self._receipts.put(header.device_id, busy)

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
                sound = await asyncio.to_thread(self._inspect, upload)
                if self._desk.roster.is_barred(upload.header.device_id):  # since its header came
                    upload.payload.unlink(missing_ok=True)
                    return
                self._desk.attempts.check(upload.header)
            except Rejected as rejected:
                self._settle(upload.header, upload.digest, rejected)
                upload.payload.unlink(missing_ok=True)
            else:
                if sound is None:
                    self._go_on(upload)
                else:
                    self._settle(upload.header, upload.digest, sound)
        except (DiskRefused, OSError) as error:
            self._desk.complain(f"{error}; {NOT_RECEIPTED}")

    def _inspect(self, upload: Upload) -> Sound | None:
        """Raises `Rejected` where the payload is not sound. The version may have changed since its header.

        Returns:
            What is in it; None where this disk has lost some of it, and it is to come again.
        """
        header, standing = upload.header, self._desk.head.standing
        bound = self._desk.norms.bound(tier_rank(header.tier))
        rules = self._desk.rules if bound is None else self._desk.rules._replace(fleet_norm=bound)
        check_header(header, rules, standing)
        if upload.part is not None and not upload.payload.exists() and not upload.part.finish(upload.payload):
            return None
        return self._check(header, upload.payload.read_bytes(), rules, standing)

    def _settle(self, header: UpdateHeader, digest: str, verdict: Sound | Rejected) -> None:
        """Writes a verdict into the journal, and then gives its receipt."""
        desk, facts = self._desk, (header.update, header.device_id, header.base_version)
        if isinstance(verdict, Rejected):
            seq = self._list(header, verdict)
            event: FleetEvent = UpdateRejected(*facts, verdict.reason, verdict.detail)
            receipt = _rejection(header.update, digest, verdict)
        else:
            bounded, told = desk.attempts.bounded(header)
            seq = desk.journal.record(bounded, desk.clock(), None, verdict.norm, told)
            desk.roster.deliver(header.device_id)
            desk.norms.add(header.device_id, tier_rank(header.tier), verdict.norm)
            event, receipt = UpdateAccepted(*facts), _acceptance(header.update, digest, told)
        if desk.uploads.find(header.device_id, header.update):
            desk.uploads.close(header.update)
        desk.tell(event)
        self._receipts.put(header.device_id, _numbered(receipt, header, seq))

    def _list(self, header: UpdateHeader, rejected: Rejected) -> int:
        """Writes a rejected update down; of a device that has had many today it is only counted.

        Returns:
            Its place in the journal; 0 where it has none.
        """
        desk = self._desk
        if desk.allowance.lists_rejection(header.device_id):
            return desk.journal.record(header, desk.clock(), rejected)
        desk.roster.count_unlisted(header.device_id)
        return 0

    async def _expire(self) -> None:
        """Forgets what stands still, for ever."""
        while True:
            await asyncio.sleep(EXPIRE_EVERY_S)
            try:
                number = self._desk.uploads.expire(self._checks)
            except (DiskRefused, OSError) as error:
                self._desk.complain(f"{error}; trying again in {EXPIRE_EVERY_S:.0f} s")
                continue
            if number:
                self._desk.complain(
                    f"{number} updates under way stood still for too long and are forgotten", "forgotten"
                )


def _final(update: Update, digest: str) -> Receipt:
    if update.status == "rejected":
        return _rejection(update.id, digest, Rejected(update.reason or "malformed", update.detail))
    return _acceptance(update.id, digest, update.detail)


def _numbered(receipt: Receipt, header: UpdateHeader, seq: int) -> Receipt:
    """Adds a receipt's place in the journal, for devices that know of it."""
    return receipt if header.base_sha256 is None or not seq else structs.replace(receipt, seq=seq)


def _acceptance(update: str, digest: str, detail: str) -> Receipt:
    return Receipt(update=update, header=digest, status="accepted", detail=detail)


def _rejection(update: str, digest: str, rejected: Rejected) -> Receipt:
    facts = {"reason": rejected.reason, "detail": rejected.detail[:MAX_DETAIL]}
    return Receipt(update=update, header=digest, status="rejected", **facts)  # type: ignore[arg-type]
