"""Versions of the global adapter: immutable files known by their sha256, and their lineage in the journal.

    objects/<sha256>   a canonical adapter file: a master, what is dispatched to a rank tier, a remainder, a
                       moment of the server's optimiser; and the sample of the base model that devices prove
                       their quantised copies by

A version's parent is the version it was made from. `rollback` makes a new version of an old one's files
whose parent is the old one: what came between is no ancestor any more. `depth` counts the merges of a
lineage, so a rollback adds none; staleness is the difference of two depths, which is the current version
minus the base version as long as nothing was rolled back.

A rollback brings back all that a strategy carried from the old version: remainder, moments, norms. The
devices' accounts stay as they are, for they count what happened: which updates were taken, and their weight.

Versions that are older than `keep_versions` keep their rows and lose their files, unless a device still
holds them (`coordinator.ledger.retention`).
"""

import hashlib
import sqlite3
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import msgspec
from msgspec import Struct, structs

from converters.adapter import LoraAdapter
from converters.formats.about import NOTHING, About
from converters.formats.canonical import dump_adapter, load_adapter
from coordinator.errors import UnknownVersion
from coordinator.ledger.journal import Journal
from coordinator.strategies.base import Account, Report, State
from edge.protocol.tiers import tier_rank
from edge.storage.disk import room_for, write_file

FOLDER = "objects"


class Carried(Struct, frozen=True, forbid_unknown_fields=True):
    """What of a strategy's state a version keeps beside its adapter, remainder and the devices' accounts."""

    norms: tuple[float, ...] = ()
    moments: dict[str, str] = {}  # by name, to their sha256


class Origin(Struct, frozen=True, forbid_unknown_fields=True):
    """The adapter that version 0 is."""

    format: str  # peft, mlx, gguf or canonical
    name: str  # of the file with its factors, behind the folder's where the adapter is a folder
    sha256: str  # of that file
    about: About = NOTHING  # what it said beside its factors


class Version(NamedTuple):
    """One version as the journal knows it."""

    version: int
    parent: int | None
    depth: int  # merges since version 0, along the lineage
    created_at: float  # Unix time
    master: str  # sha256
    remainder: str | None  # sha256
    tiers: Mapping[str, str]  # `r8` to the sha256 of what its devices train on
    report: Report | None  # None: version 0, or a rollback
    kept: bool  # its files are still here
    loss: float | None  # on the coordinator's evaluation data, nats per label
    exact: float | None  # share of examples that are reproduced exactly
    carried: Carried = Carried()
    origin: Origin | None = None  # of version 0, where the fleet began with an adapter

    @property
    def files(self) -> set[str]:
        """The sha256 of every object it refers to."""
        optional = {self.remainder} if self.remainder else set()
        return {self.master, *self.tiers.values(), *self.carried.moments.values()} | optional


class VersionFiles(NamedTuple):
    """What a version is made of: sha256 of what is on the disk already, and what goes into the journal."""

    master: str
    remainder: str | None
    tiers: Mapping[str, str]
    carried: Carried
    accounts: Mapping[str, Account]


class VersionStore:
    """The versions of one state folder.

    Args:
        folder: The state folder.
        journal: Its journal.
    """

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.folder = folder / FOLDER
        self.sketch: str | None = None  # sha256 of the base model's sample, once `keep_sketch` was called
        self._journal = journal

    def current(self) -> Version | None:
        """The newest version; None in a fresh folder."""
        found = self._versions("ORDER BY version DESC LIMIT 1")
        return found[0] if found else None

    def version(self, number: int) -> Version:
        """One version.

        Raises:
            UnknownVersion: It was never made.
        """
        found = self._versions("WHERE version = ?", (number,))
        if not found:
            newest = self.current()
            last = f"the newest is {newest.version}" if newest else "there is none yet"
            raise UnknownVersion(f"version {number} was never made: {last}")
        return found[0]

    def history(self, limit: int = 1 << 30) -> list[Version]:
        """The latest versions, oldest first."""
        return self._versions("ORDER BY version DESC LIMIT ?", (limit,))[::-1]

    def lineage(self, number: int) -> dict[int, int]:
        """A version and all its ancestors, each with its depth."""
        return dict(
            self._journal.rows(
                "WITH RECURSIVE line (version, parent, depth) AS ("
                " SELECT version, parent, depth FROM versions WHERE version = ?"
                " UNION ALL SELECT v.version, v.parent, v.depth"
                " FROM versions v JOIN line ON v.version = line.parent)"
                " SELECT version, depth FROM line",
                (number,),
            )
        )

    def kept(self) -> list[Version]:
        """The versions whose files are here, oldest first."""
        return self._versions("WHERE kept ORDER BY version")

    def accounts(self) -> dict[str, Account]:
        """What every device that was in a version has had of them."""
        fields = ", ".join(Account.__struct_fields__)
        rows = self._journal.rows(f"SELECT device, {fields} FROM accounts")  # noqa: S608
        return {device: Account(*values) for device, *values in rows}

    def path(self, sha256: str) -> Path:
        """Where an object lies."""
        return self.folder / sha256

    def load(self, sha256: str) -> LoraAdapter:
        """An object as an adapter."""
        return load_adapter(self.path(sha256))

    def state(self, version: Version, accounts: Mapping[str, Account] = MappingProxyType({})) -> State:
        """What a strategy begins from, read without the journal, so that a thread may.

        Args:
            version: Any that is kept.
            accounts: The present ones.

        Raises:
            UnknownVersion: Its files are no longer kept.
        """
        self._check_kept(version)
        return State(
            version=version.version,
            adapter=self.load(version.master),
            remainder=self.load(version.remainder) if version.remainder else None,
            moments={name: self.load(sha256) for name, sha256 in version.carried.moments.items()},
            accounts=accounts,
            norms=version.carried.norms,
        )

    def whole(self, version: Version) -> LoraAdapter:
        """What the version is to those who use it: as devices of the fleet's own rank compute with it.

        It is the master; where a strategy carries a residual for devices (FedEx-LoRA), with it behind.

        Raises:
            UnknownVersion: Its files are no longer kept.
        """
        self._check_kept(version)
        if version.remainder is None:
            return self.load(version.master)
        return self.load(version.tiers[max(version.tiers, key=tier_rank)])

    def _check_kept(self, version: Version) -> None:
        if not version.kept:
            raise UnknownVersion(f"version {version.version} is no longer kept; see keep_versions")

    def store(self, state: State, tiers: Mapping[str, LoraAdapter]) -> VersionFiles:
        """Writes a version's files; nothing refers to them until `add`.

        Raises:
            DiskFull: Some may be written; `collect` removes them.
        """
        moments = {name: self._put(dump_adapter(moment)) for name, moment in state.moments.items()}
        return VersionFiles(
            master=self._put(dump_adapter(state.adapter)),
            remainder=self._put(dump_adapter(state.remainder)) if state.remainder else None,
            tiers={name: self._put(dump_adapter(tier)) for name, tier in tiers.items()},
            carried=Carried(state.norms, moments),
            accounts=state.accounts,
        )

    def add(
        self,
        files: VersionFiles,
        parent: int | None,
        report: Report | None,
        at: float,
        origin: Origin | None = None,
    ) -> Version | None:
        """Makes a version current, and takes the updates it holds out of the buffer, in one transaction.

        Returns:
            None, and nothing is changed, if `parent` is not the newest version any more: somebody rolled
            back.

        Raises:
            DiskFull: Nothing is changed.
        """
        with self._journal.transaction() as db:
            newest, depth = db.execute("SELECT max(version), depth FROM versions").fetchone()
            if newest != parent:
                return None
            number = 0 if newest is None else newest + 1
            made = Version(
                version=number,
                parent=parent,
                depth=0 if parent is None else depth + 1,
                created_at=at,
                master=files.master,
                remainder=files.remainder,
                tiers=files.tiers,
                report=report,
                kept=True,
                loss=None,
                exact=None,
                carried=files.carried,
                origin=origin,
            )
            _insert(db, made)
            db.executemany(
                "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?, ?)",
                [(name, *structs.astuple(one)) for name, one in files.accounts.items()],
            )
            if report is not None:
                db.executemany(
                    "UPDATE updates SET merged_into = ?, staleness = ?, weight = ? WHERE id = ?",
                    [(number, share.staleness, share.weight, share.update) for share in report.shares],
                )
        return made

    def rollback(self, to: int, at: float) -> Version:
        """Makes an older version's files current again, under a new number.

        Updates in the buffer whose base version is no ancestor any more are discarded.

        Raises:
            UnknownVersion: It was never made, or its files are no longer kept.
        """
        with self._journal.transaction() as db:
            old, newest = self.version(to), self.current()
            if not old.kept or newest is None:
                raise UnknownVersion(f"version {to} is no longer kept, only its row; see keep_versions")
            made = old._replace(
                version=newest.version + 1, parent=to, created_at=at, report=None, origin=None
            )
            _insert(db, made)
            kept = ", ".join(str(number) for number in self.lineage(made.version))
            db.execute(
                "UPDATE updates SET status = 'discarded', reason = 'rolled-back', detail = ?"  # noqa: S608
                f" WHERE status = 'accepted' AND merged_into IS NULL AND base_version NOT IN ({kept})",
                (f"version {made.version} went back to {to}",),
            )
        return made

    def score(self, number: int, loss: float, exact: float) -> None:
        """Writes down how good a version is."""
        with self._journal.transaction() as db:
            db.execute("UPDATE versions SET loss = ?, exact = ? WHERE version = ?", (loss, exact, number))

    def keep_sketch(self, sketch: bytes) -> None:
        """Keeps the sample of the base model beside the versions.

        Raises:
            DiskFull: There is no room.
        """
        self.sketch = self._put(sketch)

    def collect(self, keep_versions: int, held: Collection[int] = ()) -> None:
        """Removes the files of old versions, and files that no version refers to.

        Args:
            keep_versions: The newest so many stay.
            held: Older versions that stay as well, where they still have their files.
        """
        with self._journal.transaction() as db:
            newest = db.execute("SELECT max(version) FROM versions").fetchone()[0]
            old = db.execute(
                "SELECT version FROM versions WHERE kept AND version <= ?", (newest - keep_versions,)
            )
            lost = [(number,) for (number,) in old.fetchall() if number not in held]
            db.executemany("UPDATE versions SET kept = 0 WHERE version = ?", lost)
        referred = {sha256 for one in self.kept() for sha256 in one.files} | {self.sketch}
        for path in self.folder.iterdir():
            if path.name not in referred:
                path.unlink()

    def _put(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.path(sha256).exists():
            with room_for("a version", self.folder):
                self.folder.mkdir(exist_ok=True)
            write_file(self.path(sha256), content)
        return sha256

    def _versions(self, condition: str, values: tuple[object, ...] = ()) -> list[Version]:
        fields = ", ".join(Version._fields)
        rows = self._journal.rows(f"SELECT {fields} FROM versions {condition}", values)  # noqa: S608
        return [_version(Version(*row)) for row in rows]


def _version(row: Version) -> Version:
    """A row with its JSON columns read."""
    report = msgspec.json.decode(str(row.report), type=Report) if row.report is not None else None
    tiers = msgspec.json.decode(str(row.tiers), type=dict[str, str])
    carried = msgspec.json.decode(str(row.carried), type=Carried)
    origin = msgspec.json.decode(str(row.origin), type=Origin) if row.origin is not None else None
    return row._replace(report=report, tiers=tiers, carried=carried, kept=bool(row.kept), origin=origin)


def _insert(db: sqlite3.Connection, version: Version) -> None:
    row = [
        msgspec.json.encode(value).decode() if isinstance(value, Mapping | Struct) else value
        for value in version
    ]
    marks = ", ".join("?" * len(row))
    db.execute(f"INSERT INTO versions ({', '.join(version._fields)}) VALUES ({marks})", row)  # noqa: S608
