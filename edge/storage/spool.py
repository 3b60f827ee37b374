"""Updates on disk until they are receipted.

An update is one folder, made elsewhere and renamed into place, so it is there whole or not at all:

    spool/<epoch>-<base version>-<attempt>/    without the epoch where the coordinator told none
        header.json           the header, as it is signed each time that it is sent
        payload.bin           the encoded delta
        residual.safetensors  what the encoding left over
        residual-noised.safetensors  the same of an update with noise, in the place of the other

An accepted update's residual becomes the device's; a refused one's is dropped with it, so what earlier
encodings left over is still there. Both steps may be repeated after a kill. What an update without noise left
over is never added to one with noise: it would tell what the noise hides.
"""

import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

from converters.adapter import LoraAdapter
from converters.formats.canonical import dump_adapter, load_adapter
from edge.errors import ProtocolError, StateError
from edge.protocol.messages import UpdateHeader, decode_message, encode_message
from edge.storage.disk import room_for, sync_folder, write_through
from edge.storage.wire_1 import renew_header

HEADER, PAYLOAD = "header.json", "payload.bin"
RESIDUAL, NOISED = "residual.safetensors", "residual-noised.safetensors"
WIRE_1 = b'{"body":'  # how a signed header begins; now the body lies there alone


class Entry(NamedTuple):
    """An update that waits for its receipt."""

    folder: Path
    header: UpdateHeader
    body: bytes  # the header as it is signed

    @property
    def digest(self) -> str:
        """Returns the header's SHA-256, which its receipts name."""
        return hashlib.sha256(self.body).hexdigest()

    @property
    def payload(self) -> Path:
        """Returns the file of the encoded delta."""
        return self.folder / PAYLOAD


class Spool:
    """The updates of one device, oldest first.

    Args:
        folder: Of the spool alone.
        residual: Where the device's residual lies between updates; one with noise lies beside it.
    """

    def __init__(self, folder: Path, residual: Path) -> None:
        self._folder = folder
        self._residual = residual
        self._noised = residual.with_name(NOISED)
        with room_for("tidying up", folder):
            for leftover in folder.glob(".*"):  # of a client that was killed while adding or dropping
                shutil.rmtree(leftover)

    def entries(self) -> list[Entry]:
        """Returns all updates without a receipt, oldest first.

        Raises:
            StateError: A header is damaged.
            DiskRefused: One cannot be read now.
        """
        with room_for("reading", self._folder):
            return [_read(path) for path in sorted(self._folder.iterdir()) if not path.name.startswith(".")]

    def holds(self, version: int, attempt: int, epoch: int = 0) -> bool:
        """Tells whether the update of this task is here."""
        return (self._folder / _name(epoch, version, attempt)).exists()

    def add(
        self,
        header: UpdateHeader,
        payload: bytes,
        residual: LoraAdapter | None,
        epoch: int = 0,
        *,
        is_noised: bool = False,
    ) -> None:
        """Takes an update in; afterwards it survives a power cut.

        Args:
            header: Of the update.
            payload: The encoded delta.
            residual: What the encoding left over.
            epoch: Of the task's manifest: a restored coordinator's versions fall, epochs always rise.
            is_noised: Whether the update, and what was left over before it, had noise.

        Raises:
            DiskRefused: Nothing was added.
        """
        draft = self._folder / ".draft"
        with room_for("an update", self._folder):
            if draft.exists():  # a disk that refused the last one may have refused to remove it, too
                shutil.rmtree(draft)
            try:
                draft.mkdir()
                write_through(draft / HEADER, encode_message(header))
                write_through(draft / PAYLOAD, payload)
                if residual is not None:
                    write_through(draft / (NOISED if is_noised else RESIDUAL), dump_adapter(residual))
                sync_folder(draft)
                draft.rename(self._folder / _name(epoch, header.base_version, header.attempt))
            except OSError:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            sync_folder(self._folder)

    def residual(self, *, is_noised: bool = False) -> LoraAdapter | None:
        """Returns what the latest encoding left over: of the newest update, else of the last accepted.

        Args:
            is_noised: What an update without noise left over is not returned.
        """
        waiting = [entry.folder / name for entry in reversed(self.entries()) for name in (NOISED, RESIDUAL)]
        for path in (*waiting, self._noised, self._residual):
            if path.exists():
                return load_adapter(path) if path.name == NOISED or not is_noised else None
        return None

    def accept(self, entry: Entry) -> None:
        """Forgets an accepted update; what its encoding left over is kept for the next.

        Raises:
            DiskRefused: It is still here, and is receipted again when it is sent again.
        """
        with room_for("the removal of an update", self._folder):
            self._keep(entry.folder / RESIDUAL, self._residual, instead_of=self._noised)
            self._keep(entry.folder / NOISED, self._noised, instead_of=self._residual)
        self.drop(entry)

    def drop(self, entry: Entry) -> None:
        """Forgets an update and what its encoding left over.

        Raises:
            DiskRefused: As `accept`.
        """
        leaving = self._folder / f".{entry.folder.name}"
        with room_for("the removal of an update", self._folder):
            if entry.folder.exists():  # else it was gone already when the disk refused the rest
                entry.folder.rename(leaving)
            sync_folder(self._folder)
            if leaving.exists():
                shutil.rmtree(leaving)

    def _keep(self, left: Path, kept: Path, *, instead_of: Path) -> None:
        if left.exists():
            left.replace(kept)
            instead_of.unlink(missing_ok=True)
            sync_folder(kept.parent)


def _name(epoch: int, version: int, attempt: int) -> str:
    """Names an entry; names sort in the order of time, those without an epoch before all others."""
    return f"{epoch:016d}-{version:010d}-{attempt:06d}" if epoch else f"{version:010d}-{attempt:06d}"


def _read(folder: Path) -> Entry:
    path = folder / HEADER
    try:
        body = path.read_bytes()
        if body.startswith(WIRE_1):
            body = renew_header(path, folder / PAYLOAD)
        header = decode_message(body, UpdateHeader)
    except (FileNotFoundError, ProtocolError) as error:
        raise StateError(f"{path}: is damaged: {error}; remove {folder} to give this update up") from error
    return Entry(folder, header, body)
