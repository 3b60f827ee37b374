"""Updates on their way in: header and parts lie on the disk, so that a killed coordinator goes on receiving.

    incoming/<update>.header   the header's body, checked, to the byte as its device signed it
    incoming/<update>.part     the chunks that have come (`edge.storage.parts`)
    updates/<update>           the payload, once it is whole and its sha256 is right

A small one is held in memory instead, and costs the disk nothing before its verdict: a kill before that loses
what its device still has in its spool, and sends again. All of them together are bounded in bytes and not in
number, so that a thousand devices may send at once.

Memory of a large one is a byte per chunk. How many may be under way is bounded, for each device and for all.
Where there is no room one that stands still makes some, and its device begins it anew: of the device that
holds most, the one that has stood longest. One that moves, however slowly, or is being checked makes none;
who finds none asks again. Some places are for devices that have delivered before, so that a crowd of
newcomers cannot keep them out. What stands still for an hour is forgotten.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import NamedTuple

from coordinator.intake.roster import Roster
from coordinator.ledger.contract import Updates
from coordinator.limits import Limits
from edge.errors import ProtocolError
from edge.protocol.messages import UpdateHeader, decode_message
from edge.storage.disk import room_for, write_file
from edge.storage.held_part import HeldPart
from edge.storage.parts import PartFile


class Upload(NamedTuple):
    """One update under way."""

    header: UpdateHeader
    part: PartFile | HeldPart | None  # None: the payload is whole, and lies at `payload`
    payload: Path
    digest: str  # SHA-256 of the header as its device signed it

    @property
    def is_held(self) -> bool:
        """Tells whether it is small, and in memory alone."""
        return isinstance(self.part, HeldPart)

    @property
    def is_whole(self) -> bool:
        """Tells whether every chunk has come."""
        return self.part is None or self.part.received.is_complete


class Uploads:
    """All updates under way.

    Args:
        incoming: Folder of headers and parts.
        updates: Folder of whole payloads.
        max_open: Large updates under way at a time.
        limits: Of each device, and how long one may stand still.
        roster: Knows who has delivered before; None where everybody has.
        clock: Seconds of any beginning, never set back.
    """

    def __init__(
        self,
        incoming: Path,
        updates: Path,
        max_open: int,
        limits: Limits = Limits(),  # noqa: B008 - it is frozen
        roster: Roster | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._incoming = incoming
        self._updates = updates
        self._max_open = max_open
        self._limits = limits
        self._roster = roster
        self._clock = clock
        self._open: dict[str, Upload] = {}  # the one without progress for longest comes first
        self._of: dict[str, set[str]] = {}  # the same, by device
        self._moved_at: dict[str, float] = {}

    def recover(self, journal: Updates) -> None:
        """Takes up what an earlier process was receiving; what the journal knows already is cleared away."""
        for path in sorted(self._incoming.glob("*.header"), key=lambda path: path.stat().st_mtime):
            try:
                body = path.read_bytes()
                header = decode_message(body, UpdateHeader)
            except ProtocolError:  # of an older version: the device will begin anew
                path.unlink()
                continue
            self._hold(self._taken_up(header, body))
            if journal.update(header.update):
                self.close(header.update)
        known = {self._part(update) for update in self._open}
        for path in self._incoming.glob("*.part"):
            if path not in known:
                path.unlink()

    def whole(self) -> list[Upload]:
        """Returns the updates that only wait to be admitted: after a kill, or a full disk."""
        return [upload for upload in self._open.values() if upload.is_whole]

    def base_versions(self) -> set[int]:
        """Returns the versions that the updates under way were trained on."""
        return {upload.header.base_version for upload in self._open.values()}

    def find(self, device_id: str, update: str) -> Upload | None:
        """Returns an update of this device that is under way."""
        upload = self._open.get(update)
        return upload if upload and upload.header.device_id == device_id else None

    def begin(self, header: UpdateHeader, body: bytes, busy: Container[str] = ()) -> Upload | None:
        """Makes ready for the chunks of an update whose header has been checked.

        Args:
            header: The update's.
            body: The same, as it was signed.
            busy: Updates that may not be forgotten.

        Returns:
            It; None where there is no room, and none can be made.

        Raises:
            DiskRefused: Nothing was begun.
        """
        for update in self._same_attempt(header):
            if update not in busy:
                self.close(update)
        own = self._of.get(header.device_id, ())
        if len(own) >= self._limits.max_open_per_device:
            leaves = next((update for update in self._in_order(own) if update not in busy), None)
        elif self._has_room(header):
            leaves = ""
        else:
            leaves = self._idlest(header, busy)
        if leaves is None:
            return None
        if leaves:
            self.close(leaves)
        upload = self._taken_up(header, body)
        if not upload.is_held:
            write_file(self._header(header.update), body)
        self._hold(upload)
        return upload

    def expire(self, busy: Container[str] = ()) -> int:
        """Forgets what has stood still for too long, and returns how many updates that was."""
        still = self._still(self._limits.expiry_s, busy)
        for update in still:
            self.close(update)
        return len(still)

    def write(self, upload: Upload, number: int, message: bytes) -> bool:
        """Keeps a chunk that comes with its proof; False when it was there already.

        Raises:
            Rejected: `malformed`: no such chunk. `hash-mismatch`: it is none of this update.
            DiskRefused: What was there before still is.
        """
        is_new = upload.part is not None and upload.part.write(number, message)
        if is_new:
            self._hold(self._open.pop(upload.header.update))
        return is_new

    def close(self, update: str) -> None:
        """Forgets an update under way; a whole payload stays where it is.

        Raises:
            DiskRefused: Its files are still there; `recover` of the next process clears them away.
        """
        upload = self._open.pop(update)
        del self._moved_at[update]
        own = self._of[upload.header.device_id]
        own.discard(update)
        if not own:
            del self._of[upload.header.device_id]
        if not upload.is_held:
            with room_for("the removal of an update", self._incoming):
                self._header(update).unlink(missing_ok=True)
        if upload.part is not None:
            upload.part.discard()

    def drop(self, device_id: str) -> None:
        """Forgets all updates of a device that are under way."""
        for update in list(self._of.get(device_id, ())):
            self.close(update)

    def _hold(self, upload: Upload) -> None:
        """Puts an update that has moved behind all others."""
        self._open[upload.header.update] = upload
        self._of.setdefault(upload.header.device_id, set()).add(upload.header.update)
        self._moved_at[upload.header.update] = self._clock()

    def _in_order(self, updates: Container[str]) -> Iterator[str]:
        """Yields some of the updates under way, the one without progress for longest first."""
        return (update for update in self._open if update in updates)

    def _same_attempt(self, header: UpdateHeader) -> list[str]:
        """Returns the updates under way of which only one can count with this one: the newest is meant."""
        own = self._of.get(header.device_id, ())
        return [update for update in own if _attempt(self._open[update].header) == _attempt(header)]

    def _has_room(self, header: UpdateHeader) -> bool:
        """Tells whether there is a place: of small updates the bytes count, of large ones the number."""
        is_small = self._is_small(header)
        needed, most = (header.size_bytes, self._limits.max_held_bytes) if is_small else (1, self._max_open)
        alike = [one.header for one in self._open.values() if self._is_small(one.header) == is_small]
        if sum(self._places(one) for one in alike) + needed > most:
            return False
        if self._roster is None or self._roster.has_delivered(header.device_id):
            return True
        kept = min(most // 2, self._roster.num_delivered * needed)
        newcomers = sum(self._places(one) for one in alike if not self._roster.has_delivered(one.device_id))
        return newcomers + needed <= most - kept

    def _idlest(self, header: UpdateHeader, busy: Container[str]) -> str | None:
        """Returns the update that makes room; None where all move."""
        is_small = self._is_small(header)
        places = Counter(upload.header.device_id for upload in self._open.values())
        still = [
            update
            for update in self._still(self._limits.idle_s, busy)
            if self._is_small(self._open[update].header) == is_small
        ]
        return max(still, key=lambda update: places[self._open[update].header.device_id], default=None)

    def _still(self, since_s: float, busy: Container[str]) -> list[str]:
        """Returns what has stood still for so long, the longest first."""
        until = self._clock() - since_s
        return [
            update
            for update, upload in self._open.items()
            if self._moved_at[update] <= until and update not in busy and not upload.is_whole
        ]

    def _taken_up(self, header: UpdateHeader, body: bytes) -> Upload:
        payload, digest = self._updates / header.update, hashlib.sha256(body).hexdigest()
        if payload.exists():
            return Upload(header, None, payload, digest)
        said = header.size_bytes, header.chunk_bytes, header.sha256, header.root
        part = HeldPart(*said) if self._is_small(header) else PartFile(self._part(header.update), *said)
        return Upload(header, part, payload, digest)

    def _is_small(self, header: UpdateHeader) -> bool:
        return header.size_bytes <= self._limits.small_bytes

    def _places(self, header: UpdateHeader) -> int:
        return header.size_bytes if self._is_small(header) else 1

    def _header(self, update: str) -> Path:
        return self._incoming / f"{update}.header"

    def _part(self, update: str) -> Path:
        return self._incoming / f"{update}.part"


def _attempt(header: UpdateHeader) -> tuple[str, int, int]:
    return header.device_id, header.base_version, header.attempt
