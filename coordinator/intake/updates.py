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
from contextlib import suppress
from typing import Any, NamedTuple

from msgspec import structs

from coordinator.events.records import UpdateAccepted, UpdateRefused, UpdateRejected
from coordinator.events.telling import Complaints, Tell
from coordinator.intake.admission import (
    Rules,
    Sound,
    check_header,
    check_id,
    check_payload,
    unseal_payload,
)
from coordinator.intake.allowance import Allowance
from coordinator.intake.attempts import Attempts
from coordinator.intake.checks import Checks
from coordinator.intake.commits import Commits
from coordinator.intake.norms import Norms
from coordinator.intake.open_uploads import Upload, Uploads
from coordinator.intake.receipts import Receipts
from coordinator.intake.roster import Roster
from coordinator.ledger.contract import Updates
from coordinator.ledger.head import Head, Standing
from coordinator.ledger.records import Refusal, Update, Verdict
from edge.errors import DiskRefused, Rejected
from edge.protocol.messages import MAX_DETAIL, Receipt, UpdateHeader
from edge.protocol.signing import Opened, Signer
from edge.protocol.tiers import tier_rank
from edge.protocol.topics import Topics
from edge.storage.held_part import HeldPart
from edge.storage.mapping import map_file
from edge.storage.parts import PartFile
from edge.transport.base import Transport

AT_A_TIME = 4  # checks that run together, each with a payload in memory
EXPIRE_EVERY_S = 60.0
Payload = bytes | memoryview  # a large one is a view of its file
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
        self._commits = Commits(
            desk.journal, lambda fault: desk.complain(f"{fault}; {NOT_RECEIPTED}", "disk")
        )
        self._busy = _Busy(self._checks, self._commits)
        self._receipts = Receipts(desk.transport, desk.topics, desk.signer)

    def recover(self) -> None:
        """Takes up what an earlier process was receiving; what was whole already is checked."""
        self._desk.uploads.recover(self._desk.journal)
        for upload in self._desk.uploads.whole():
            self._checks.add(upload)

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """Returns what has to run beside the messages: checks, journal and receipts, for ever."""
        beside = [self._receipts.run(), self._commits.run(), self._expire()]
        return [*beside, *(self._checks.run() for _ in range(AT_A_TIME))]

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
        if update in self._commits:  # its receipt follows
            return
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
        if desk.allowance.lists_rejection(device_id):
            desk.journal.refuse(Refusal(desk.clock(), device_id, update, rejected.reason, rejected.detail))
        else:
            desk.roster.count_unlisted(device_id)
        desk.tell(UpdateRefused(update, device_id, rejected.reason, rejected.detail))
        self._receipts.put(device_id, _rejection(update, digest, rejected))

    def take_chunk(self, device_id: str, update: str, number: int, message: bytes) -> None:
        """Keeps a chunk of an update under way; the last one has it checked. Chunks of others are dropped.

        Raises:
            Rejected: It is no chunk of this update, whoever sent it.
            DiskRefused: The chunk is not kept, what was there before still is.
        """
        upload = self._desk.uploads.find(device_id, update)
        if upload is None or update in self._busy:
            return
        if self._desk.uploads.write(upload, number, message) and upload.is_whole:
            self._check_soon(upload)

    def drop(self, device_id: str, _key: str) -> None:
        """Forgets what a device is sending that may speak no longer."""
        self._desk.uploads.drop(device_id)

    def _open(self, opened: Opened[UpdateHeader]) -> None:
        desk, header = self._desk, opened.record
        try:
            check_header(header, desk.rules, desk.head.standing)
            desk.attempts.check(header)
        except Rejected as rejected:
            self._settle(header, opened.digest, rejected, None)
            return
        crowded = desk.allowance.crowded(header.device_id, header.size_bytes)
        if not crowded and desk.uploads.begin(header, opened.body, self._busy) is None:
            crowded = "too many updates are under way, and all of them move"
        if crowded:
            busy = Receipt(update=header.update, header=opened.digest, status="busy", detail=crowded)
            self._receipts.put(header.device_id, busy)
        elif not _is_held(desk.uploads, header):
            desk.roster.settle(header.device_id)

    def _go_on(self, upload: Upload) -> None:
        if upload.is_whole:
            self._check_soon(upload)
        elif upload.part is not None:
            update, missing = upload.header.update, upload.part.received.missing()
            receipt = Receipt(update=update, header=upload.digest, status="missing", missing=missing)
            self._receipts.put(upload.header.device_id, receipt)

    def _check_soon(self, upload: Upload) -> None:
        """Has a whole upload checked: a small one here and now, since a thread would take as long again."""
        if isinstance(upload.part, HeldPart):
            content = upload.part.content
            self._conclude(upload, self._judge(upload.header, content))
        else:
            self._checks.add(upload)

    async def _admit(self, upload: Upload) -> None:
        """Judges a whole large upload; where the disk is full it stays, and its device asks again."""
        try:
            found = await asyncio.to_thread(self._judge, upload.header, lambda: _read(upload))
        except (DiskRefused, OSError) as error:
            self._desk.complain(f"{error}; {NOT_RECEIPTED}")
        else:
            self._conclude(upload, found)

    def _judge(
        self, header: UpdateHeader, content: Callable[[], Payload | None]
    ) -> tuple[Sound | Rejected, Payload] | None:
        """Returns what a whole upload is worth, and its payload. The version may have changed meanwhile.

        Returns:
            None where this disk has lost some of it, and it is to come again.
        """
        standing = self._desk.head.standing
        payload: Payload = b""
        bound = self._desk.norms.bound(tier_rank(header.tier))
        rules = self._desk.rules if bound is None else self._desk.rules._replace(fleet_norm=bound)
        try:
            check_header(header, rules, standing)
            found = content()
            if found is None:
                return None
            payload = found
            return self._check(*unseal_payload(header, memoryview(payload), rules), rules, standing), payload
        except Rejected as rejected:
            return rejected, payload

    def _conclude(self, upload: Upload, found: tuple[Sound | Rejected, Payload] | None) -> None:
        """Takes the consequences of a check."""
        header = upload.header
        if self._desk.roster.is_barred(header.device_id):  # since its header came
            with suppress(OSError):  # it goes at the next start
                upload.payload.unlink(missing_ok=True)
        elif found is None:
            self._go_on(upload)
        else:
            self._settle(header, upload.digest, self._held_to_its_attempt(header, found[0]), found[1])

    def _held_to_its_attempt(self, header: UpdateHeader, verdict: Sound | Rejected) -> Sound | Rejected:
        """Rejects an update whose attempt is another's, in the journal or on its way there."""
        if isinstance(verdict, Sound):
            try:
                self._desk.attempts.check(header, self._commits.taken(header))
            except Rejected as rejected:
                return rejected
        return verdict

    def _settle(
        self, header: UpdateHeader, digest: str, verdict: Sound | Rejected, payload: Payload | None
    ) -> None:
        """Has a verdict written into the journal, and gives its receipt after it; without room, neither."""
        desk = self._desk
        if self._commits.is_full:
            return
        if isinstance(verdict, Sound):
            bounded, told = desk.attempts.bounded(verdict.header)
            kept = bytes(payload) if payload is not None and _is_held(desk.uploads, header) else None
            row = Verdict(bounded, desk.clock(), None, verdict.norm, told, kept)
            self._commits.put(row, lambda seq: self._accepted(header, digest, verdict.norm, told, seq))
        elif desk.allowance.lists_rejection(header.device_id):
            row = Verdict(header, desk.clock(), verdict)
            self._commits.put(row, lambda seq: self._rejected(header, digest, verdict, seq))
        else:
            desk.roster.count_unlisted(header.device_id)
            self._rejected(header, digest, verdict, 0)

    def _accepted(self, header: UpdateHeader, digest: str, norm: float, told: str, seq: int) -> None:
        desk = self._desk
        desk.roster.deliver(header.device_id)
        desk.norms.add(header.device_id, tier_rank(header.tier), norm)
        self._answer(header, _acceptance(header.update, digest, told), seq)
        desk.tell(UpdateAccepted(header.update, header.device_id, header.base_version))

    def _rejected(self, header: UpdateHeader, digest: str, rejected: Rejected, seq: int) -> None:
        desk = self._desk
        upload = desk.uploads.find(header.device_id, header.update)
        self._answer(header, _rejection(header.update, digest, rejected), seq)
        if upload and not upload.is_held:
            with suppress(OSError):  # it goes at the next start
                upload.payload.unlink(missing_ok=True)
        told = rejected.reason, rejected.detail
        desk.tell(UpdateRejected(header.update, header.device_id, header.base_version, *told))

    def _answer(self, header: UpdateHeader, receipt: Receipt, seq: int) -> None:
        """Gives the receipt of a verdict that is on the disk, and forgets what came."""
        desk = self._desk
        self._receipts.put(header.device_id, _numbered(receipt, header, seq))
        if desk.uploads.find(header.device_id, header.update):
            try:
                desk.uploads.close(header.update)
            except DiskRefused as error:
                desk.complain(str(error), "disk")

    async def _expire(self) -> None:
        """Forgets what stands still, for ever."""
        while True:
            await asyncio.sleep(EXPIRE_EVERY_S)
            try:
                number = self._desk.uploads.expire(self._busy)
            except (DiskRefused, OSError) as error:
                self._desk.complain(f"{error}; trying again in {EXPIRE_EVERY_S:.0f} s")
                continue
            if number:
                self._desk.complain(
                    f"{number} updates under way stood still for too long and are forgotten", "forgotten"
                )


class _Busy:
    """The updates that may not be forgotten: they are being checked, or written down."""

    def __init__(self, checks: Checks, commits: Commits) -> None:
        self._checks, self._commits = checks, commits

    def __contains__(self, update: object) -> bool:
        return update in self._checks or update in self._commits


def _read(upload: Upload) -> memoryview | None:
    """Returns a large payload, whole and on the disk; None where the disk has lost some of it."""
    if (
        isinstance(upload.part, PartFile)
        and not upload.payload.exists()
        and not upload.part.finish(upload.payload)
    ):
        return None
    return map_file(upload.payload)


def _is_held(uploads: Uploads, header: UpdateHeader) -> bool:
    upload = uploads.find(header.device_id, header.update)
    return upload is not None and upload.is_held


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
