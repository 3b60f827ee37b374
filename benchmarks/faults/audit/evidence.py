"""What a run left behind, read once: the record, the journal, the spools, the payloads that were kept."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from benchmarks.faults.record import FLEET, KEPT, LABORATORY, Entry, Settings, read_record, read_settings
from benchmarks.faults.schedule import COORDINATOR
from coordinator.ledger.objects import FileObjects
from coordinator.ledger.payloads import Payloads
from coordinator.ledger.records import Update, Version
from coordinator.ledger.state import open_ledger
from coordinator.ledger.versions import VersionStore
from edge.protocol.sealing import Context, open_update
from edge.storage.identity import read_identity

Kind = str  # lost, twice, contradiction, damaged, lineage, uncounted, stuck, ended, mistake


class Finding(Struct, frozen=True):
    """One thing that must not be."""

    kind: Kind
    who: str  # a device, the coordinator, a version
    told: str


class Header(Struct, frozen=True):
    """What the audit reads of an update's header; other fields may come and go."""

    update: str
    device_id: str
    base_version: int
    attempt: int
    sha256: str
    size_bytes: int


class _Signed(Struct, frozen=True):
    body: Header


class Spooled(NamedTuple):
    """One update that still lies in a spool."""

    header: Header
    payload: Path


class Evidence(NamedTuple):
    """All of a run."""

    folder: Path
    settings: Settings
    entries: list[Entry]
    updates: Mapping[str, Update]  # of the journal
    versions: list[Version]  # oldest first
    store: VersionStore
    payloads: Payloads  # of updates in the buffer
    spooled: Mapping[str, Spooled]
    uploads: Mapping[str, int]  # how often each device was in a version's buffer, by its account
    identity: bytes  # the coordinator's, which opens what was sealed for it

    def kept(self, update: str) -> Path:
        """Returns where the payload lies as it was spooled; it may be missing."""
        return self.folder / KEPT / update

    def delta(self, update: str) -> bytes:
        """Returns the encoded delta in a payload that was kept, opened where it is sealed."""
        row, payload = self.updates[update], self.kept(update).read_bytes()
        if not row.is_sealed:
            return payload
        dispatched = self.versions[row.base_version].tiers[row.tier]
        place = Context(FLEET, row.device, row.base_version, row.attempt, dispatched)
        return open_update(payload, self.identity, place).delta

    def said(self, event: str, *, by: str = "") -> Iterator[Entry]:
        """Yields what was said of one kind, by one program or by all."""
        return (one for one in self.entries if one.event == event and by in ("", one.who))

    def moment(self, event: str) -> float | None:
        """Returns when the laboratory noted something, the first time."""
        return next((one.at_s for one in self.said(event, by=LABORATORY)), None)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Evidence]:
    """Opens a run's folder."""
    settings = read_settings(folder)
    with open_ledger(folder / COORDINATOR) as (journal, store):
        yield Evidence(
            folder=folder,
            settings=settings,
            entries=read_record(folder),
            updates={update.id: update for update in journal.updates(limit=1 << 30)},
            versions=journal.versions()[::-1],
            store=store,
            payloads=Payloads(journal, FileObjects(folder / COORDINATOR / "updates")),
            spooled=dict(_spooled(folder)),
            uploads={device: account.uploads for device, account in journal.accounts().items()},
            identity=read_identity(folder / COORDINATOR, "the audit reads what was sealed with it"),
        )


def read_header(entry: Path) -> Header:
    """Reads the header of a spool's entry, whatever its envelope looks like.

    Raises:
        OSError, msgspec.MsgspecError: It is not there, or damaged.
    """
    content = (entry / "header.json").read_bytes()
    try:
        return msgspec.json.decode(content, type=_Signed).body
    except msgspec.ValidationError:  # the spool keeps the body alone
        return msgspec.json.decode(content, type=Header)


def _spooled(folder: Path) -> Iterator[tuple[str, Spooled]]:
    for entry in sorted((folder / "devices").glob("*/spool/[!.]*")):
        header = read_header(entry)
        yield header.update, Spooled(header, entry / "payload.bin")
