"""The journal of a state folder, in SQLite; no file but this and `access` speaks SQL.

`journal.sqlite` is written ahead (WAL) and through to the disk (synchronous=FULL): what a receipt says is
here before the receipt is sent. Every change is one transaction, and other processes may read and write at
the same time. A journal of an older schema is brought up to date when it is opened.
"""
# ruff: noqa: D102 - `contract` says what the methods do

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, structs

from coordinator.ledger import records
from coordinator.ledger.access import ACCESS_TABLES, AccessBook
from coordinator.ledger.contract import EVERYTHING, MAX_REFUSALS
from coordinator.ledger.records import Backlog, Device, DiscardReason, Refusal, Tally, Update, Version
from coordinator.strategies.contract import Account, Report
from edge.errors import DiskFull, DiskRefused, Rejected, StateError
from edge.protocol.messages import Hello, Telemetry, UpdateHeader
from edge.protocol.signing import Stamp
from edge.protocol.tiers import tier_rank
from edge.storage.disk import room_for, sync_folder

T = TypeVar("T")
SCHEMA = 4
FILE = "journal.sqlite"
_BUSY_S = 30.0  # another process may write for so long; a command waits for it
_HURRY_S = 0.1  # an event loop does not: its messages and its presence would wait, too
# A quota or a file size limit is a full disk to its user, and SQLite calls it a failed write.
_FULL = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_SHMSIZE"})
_LOCKED = ("SQLITE_BUSY", "SQLITE_LOCKED")
_REFUSED = ("SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_NOMEM")

# Version 1; what is made anew takes the same way to the present one as what is old.
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE devices (
    device TEXT PRIMARY KEY, key TEXT NOT NULL, first_seen REAL NOT NULL, last_seen REAL NOT NULL,
    online INTEGER NOT NULL DEFAULT 0, epoch INTEGER NOT NULL DEFAULT 0, hello TEXT, telemetry TEXT
);
CREATE TABLE updates (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, device TEXT NOT NULL, tier TEXT NOT NULL,
    base_version INTEGER NOT NULL, attempt INTEGER NOT NULL, sha256 TEXT NOT NULL, encoding TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, num_examples INTEGER NOT NULL, num_tokens INTEGER NOT NULL,
    num_steps INTEGER NOT NULL, seconds REAL NOT NULL, loss_before REAL, loss_after REAL,
    received_at REAL NOT NULL, status TEXT NOT NULL, reason TEXT, detail TEXT NOT NULL DEFAULT '',
    merged_into INTEGER, staleness INTEGER, weight REAL
);
CREATE INDEX updates_waiting ON updates (status, merged_into);
CREATE TABLE refusals (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, device TEXT NOT NULL, id TEXT NOT NULL, reason TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE TABLE versions (
    version INTEGER PRIMARY KEY, parent INTEGER, depth INTEGER NOT NULL, created_at REAL NOT NULL,
    master TEXT NOT NULL, remainder TEXT, tiers TEXT NOT NULL, report TEXT, kept INTEGER NOT NULL DEFAULT 1,
    loss REAL, exact REAL
);
"""
# What a journal of version 1 lacks; the accounts begin with what was merged of each device.
_FROM_1 = """
ALTER TABLE devices ADD COLUMN held TEXT NOT NULL DEFAULT '[]';
ALTER TABLE versions ADD COLUMN carried TEXT NOT NULL DEFAULT '{}';
CREATE TABLE accounts (
    device TEXT PRIMARY KEY, uploads INTEGER NOT NULL, weight REAL NOT NULL, credit REAL NOT NULL,
    cosine REAL NOT NULL, num_cosines INTEGER NOT NULL
);
INSERT INTO accounts
    SELECT device, count(*), total(weight), 0.0, 0.0, 0 FROM updates
    WHERE merged_into IS NOT NULL GROUP BY device;
"""
# What one of version 2 lacks: the adapter that version 0 was made of, and devices that follow another state.
_FROM_2 = "ALTER TABLE versions ADD COLUMN origin TEXT; ALTER TABLE devices ADD COLUMN astray REAL;"
# What one of version 3 lacks: who was let in, banned or has another key now, and the tokens that were used;
# how far each device's signatures have come; what later updates are measured by, one update for each attempt,
# and rejections that were counted only.
_FROM_3 = f"""{ACCESS_TABLES}
ALTER TABLE devices ADD COLUMN stamps TEXT NOT NULL DEFAULT '{{}}';
ALTER TABLE updates ADD COLUMN norm REAL;
ALTER TABLE devices ADD COLUMN num_unlisted INTEGER NOT NULL DEFAULT 0;
CREATE INDEX updates_attempts ON updates (device, base_version, attempt);
"""
_MIGRATIONS = {1: _FROM_1, 2: _FROM_2, 3: _FROM_3}
_NEW = f"BEGIN; {_TABLES}{_FROM_1}{_FROM_2}{_FROM_3} PRAGMA user_version = {SCHEMA}; COMMIT;"
# Of SQLite's bare columns in a row with max(), num_tokens and seconds are those of that row.
_TALLIES = """
SELECT device, sum(status = 'accepted'), sum(status = 'rejected'), sum(status = 'discarded'),
    count(merged_into), avg(CASE WHEN merged_into IS NOT NULL THEN coalesce(staleness, 0) END),
    total(abs(weight)), num_tokens, seconds, max(seq)
FROM updates GROUP BY device
"""
_LINEAGE = """
WITH RECURSIVE line (version, parent, depth) AS (
    SELECT version, parent, depth FROM versions WHERE version = ?
    UNION ALL SELECT v.version, v.parent, v.depth FROM versions v JOIN line ON v.version = line.parent)
SELECT version, depth FROM line
"""


class SqliteJournal:
    """A `Journal` in a state folder; its methods do what `contract` says.

    Args:
        folder: The state folder; None forgets all with the process.
        fleet: Makes the journal where it is missing, and refuses another fleet's; None only opens.
        connect: SQLite's, or what a test sets limits with.

    Raises:
        StateError: It is missing, damaged, of a newer version or of another fleet.
        DiskRefused: There is no room to make it, or another process holds it.
    """

    def __init__(
        self,
        folder: Path | None,
        fleet: str | None = None,
        connect: Callable[..., sqlite3.Connection] = sqlite3.connect,
    ) -> None:
        self.path = folder / FILE if folder else Path(":memory:")
        if fleet is None and not self.path.is_file():
            raise StateError(
                f"{folder}: holds no {FILE}; expected the folder given to `tunefleet serve --state`"
            )
        if folder and not self.path.exists():
            self._make()
        with self._told():
            # Any thread may use it, one at a time.
            self._db = connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA synchronous = FULL")
            if not folder:
                self._db.executescript(_NEW)
        self.access = AccessBook(self._rows, self._transaction)
        try:
            self._check_schema()
            if fleet is not None:
                self.agree({"fleet": fleet})
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def hurry(self) -> None:
        self._db.execute(f"PRAGMA busy_timeout = {round(_HURRY_S * 1000)}")

    def copy(self, path: Path) -> None:
        """Copies all of it to a new file, as of one moment, whoever writes meanwhile.

        Raises:
            DiskRefused: There is no room; something may be at `path`.
        """
        with self._told(), closing(sqlite3.connect(path)) as copied:
            self._db.backup(copied)

    # Facts.

    def meta(self, key: str) -> str | None:
        found = self._rows("SELECT value FROM meta WHERE key = ?", key)
        return str(found[0][0]) if found else None

    def note(self, key: str, value: str | None) -> None:
        with self._transaction() as db:
            if value is None:
                db.execute("DELETE FROM meta WHERE key = ?", (key,))
            else:
                db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def agree(self, facts: Mapping[str, str]) -> None:
        known = {key: self.meta(key) for key in facts}
        faults = [
            f"is of {key} {known[key]}, expected {facts[key]}"
            for key in facts
            if known[key] not in (None, facts[key])
        ]
        if faults:
            raise StateError.of(str(self.path), faults, "give another --state")
        with self._transaction() as db:
            db.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", facts.items())

    def data_version(self) -> int:
        return int(self._rows("PRAGMA data_version")[0][0])

    # Updates.

    def record(
        self,
        header: UpdateHeader,
        at: float,
        rejected: Rejected | None = None,
        norm: float | None = None,
        detail: str = "",
    ) -> int:
        shared = structs.asdict(header)
        row = {name: shared[name] for name in Update._fields if name in shared} | {
            "id": header.update,
            "device": header.device_id,
            "received_at": at,
            "status": "rejected" if rejected else "accepted",
            "reason": rejected.reason if rejected else None,
            "detail": rejected.detail if rejected else detail,
            "norm": norm,
        }
        with self._transaction() as db:
            db.execute(_insert("updates", row, "OR IGNORE"), list(row.values()))
            return int(db.execute("SELECT seq FROM updates WHERE id = ?", (header.update,)).fetchone()[0])

    def update(self, update_id: str) -> Update | None:
        return next(iter(self._updates("WHERE id = ?", update_id)), None)

    def waiting(self) -> list[Update]:
        return self._updates("WHERE status = 'accepted' AND merged_into IS NULL ORDER BY seq")

    def backlog(self, device: str) -> Backlog:
        query = (
            "SELECT count(*), coalesce(sum(size_bytes), 0), coalesce(sum(device = ?), 0) FROM updates "
            "WHERE status = 'accepted' AND merged_into IS NULL"
        )
        return Backlog(*self._rows(query, device)[0])

    def counted(self, device: str, base_version: int, attempt: int) -> str | None:
        at = "device = ? AND base_version = ? AND attempt = ?"
        query = f"SELECT id FROM updates WHERE {at} AND status != 'rejected'"  # noqa: S608
        found = self._rows(query, device, base_version, attempt)
        return str(found[0][0]) if found else None

    def norms(self, since: int, limit: int) -> list[tuple[str, int, float]]:
        counted = "norm IS NOT NULL AND status != 'rejected' AND seq > ?"
        query = f"SELECT device, tier, norm FROM updates WHERE {counted} ORDER BY seq DESC LIMIT ?"  # noqa: S608
        found = reversed(self._rows(query, since, limit))
        return [(device, tier_rank(tier), norm) for device, tier, norm in found]

    def delivered(self) -> set[str]:
        return {
            device
            for (device,) in self._rows("SELECT DISTINCT device FROM updates WHERE status != 'rejected'")
        }

    def updates(self, limit: int = 1000) -> list[Update]:
        return self._updates("ORDER BY seq DESC LIMIT ?", limit)

    def last_seq(self) -> int:
        return int(self._rows("SELECT coalesce(max(seq), 0) FROM updates")[0][0])

    def discard(self, updates: Sequence[str], reason: DiscardReason, detail: str) -> None:
        with self._transaction() as db:
            db.executemany(
                "UPDATE updates SET status = 'discarded', reason = ?, detail = ? WHERE id = ?",
                [(reason, detail, update) for update in updates],
            )

    def is_stranded(self, version: int) -> bool:
        query = "SELECT 1 FROM updates WHERE status = 'discarded' AND base_version = ? LIMIT 1"
        return bool(self._rows(query, version))

    def tallies(self) -> dict[str, Tally]:
        return {device: Tally(*tally) for device, *tally, _ in self._rows(_TALLIES)}

    def refuse(self, refusal: Refusal) -> None:
        with self._transaction() as db:
            db.execute(_insert("refusals", Refusal._fields), refusal)
            db.execute(
                "DELETE FROM refusals WHERE seq <= (SELECT max(seq) FROM refusals) - ?", (MAX_REFUSALS,)
            )

    def refusals(self, limit: int = 100) -> list[Refusal]:
        query = f"SELECT {', '.join(Refusal._fields)} FROM refusals ORDER BY seq DESC LIMIT ?"  # noqa: S608
        return [Refusal(*row) for row in self._rows(query, limit)]

    # Devices.

    def enrol(self, device: Device) -> None:
        with self._transaction() as db:
            db.execute(_insert("devices", Device._fields), _packed(device))

    def devices(self) -> list[Device]:
        rows = self._rows(f"SELECT {', '.join(Device._fields)} FROM devices ORDER BY device")  # noqa: S608
        return [_device(Device(*row)) for row in rows]

    def strike(self, devices: Iterable[str]) -> None:
        with self._transaction() as db:
            db.executemany("DELETE FROM devices WHERE device = ?", [(device,) for device in devices])

    def save(self, devices: Iterable[Device]) -> None:
        names = [name for name in Device._fields if name not in ("device", "key", "first_seen")]
        changes = ", ".join(f"{name} = ?" for name in names)
        rows = [dict(zip(Device._fields, _packed(device), strict=True)) for device in devices]
        with self._transaction() as db:
            db.executemany(
                f"UPDATE devices SET {changes} WHERE device = ?",  # noqa: S608
                [[*(row[name] for name in names), row["device"]] for row in rows],
            )

    # Versions.

    def commit(self, version: Version, accounts: Mapping[str, Account]) -> bool:
        with self._transaction() as db:
            (newest,) = db.execute("SELECT max(version) FROM versions").fetchone()
            if version.version != (0 if newest is None else newest + 1):
                return False
            if version.is_rollback:
                old = db.execute("SELECT kept FROM versions WHERE version = ?", (version.parent,)).fetchone()
                if not old or not old[0]:
                    return False
            db.execute(_insert("versions", Version._fields), _packed(version))
            db.executemany(
                "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?, ?)",
                [(name, *structs.astuple(one)) for name, one in accounts.items()],
            )
            db.executemany(
                "UPDATE updates SET merged_into = ?, staleness = ?, weight = ? WHERE id = ?",
                [
                    (version.version, share.staleness, share.weight, share.update)
                    for share in (version.report.shares if version.report else ())
                ],
            )
            if version.is_rollback:
                line = ", ".join(str(number) for number, _ in db.execute(_LINEAGE, (version.version,)))
                db.execute(
                    "UPDATE updates SET status = 'discarded', reason = 'rolled-back', detail = ?"  # noqa: S608
                    f" WHERE status = 'accepted' AND merged_into IS NULL AND base_version NOT IN ({line})",
                    (f"version {version.version} went back to {version.parent}",),
                )
        return True

    def version(self, number: int) -> Version | None:
        return next(iter(self._versions("WHERE version = ?", number)), None)

    def versions(self, limit: int = EVERYTHING) -> list[Version]:
        return self._versions("ORDER BY version DESC LIMIT ?", limit)

    def kept(self) -> list[Version]:
        return self._versions("WHERE kept ORDER BY version")

    def lineage(self, number: int) -> dict[int, int]:
        return dict(self._rows(_LINEAGE, number))

    def score(self, number: int, loss: float, exact: float) -> None:
        with self._transaction() as db:
            db.execute("UPDATE versions SET loss = ?, exact = ? WHERE version = ?", (loss, exact, number))

    def forget(self, numbers: Collection[int]) -> None:
        with self._transaction() as db:
            db.executemany("UPDATE versions SET kept = 0 WHERE version = ?", [(one,) for one in numbers])

    def accounts(self) -> dict[str, Account]:
        rows = self._rows(f"SELECT device, {', '.join(Account.__struct_fields__)} FROM accounts")  # noqa: S608
        return {device: Account(*values) for device, *values in rows}

    # The database.

    def _updates(self, condition: str, *values: Any) -> list[Update]:
        query = f"SELECT {', '.join(Update._fields)} FROM updates {condition}"  # noqa: S608
        return [Update(*row) for row in self._rows(query, *values)]

    def _versions(self, condition: str, *values: Any) -> list[Version]:
        query = f"SELECT {', '.join(Version._fields)} FROM versions {condition}"  # noqa: S608
        return [_version(Version(*row)) for row in self._rows(query, *values)]

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._told(), closing(self._db.execute(query, values)) as cursor:
            return cursor.fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Makes one change, all of it or nothing, on the disk when it returns."""
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _make(self) -> None:
        """Makes the file, whole from the start: others may open it as soon as its name is there."""
        draft = self.path.with_name(f".{FILE}.partial")
        with room_for("the journal", self.path.parent):
            draft.unlink(missing_ok=True)
            with self._told(), closing(sqlite3.connect(draft, isolation_level=None)) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(_NEW)
            draft.replace(self.path)
            sync_folder(self.path.parent)

    def _check_schema(self) -> None:
        number = self._rows("PRAGMA user_version")[0][0]
        if number in _MIGRATIONS:
            self._migrate()
        elif number > SCHEMA:
            raise StateError(
                f"{self.path}: has version {number}, this tunefleet reads up to {SCHEMA}; "
                "upgrade it, or give another --state"
            )
        elif number != SCHEMA:
            raise StateError(f"{self.path}: is not a coordinator's journal; give another --state")

    def _migrate(self) -> None:
        """Brings the schema up to date, all of it or nothing; another process may have been faster."""
        with self._transaction() as db:
            begun = db.execute("PRAGMA user_version").fetchone()[0]
            for number in range(begun, SCHEMA):
                for statement in _MIGRATIONS[number].split(";"):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA}")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tells SQLite's errors as ours."""
        try:
            yield
        except sqlite3.Error as error:
            # sqlite3's own errors, as of a connection that was closed, have no name.
            name = getattr(error, "sqlite_errorname", "")
            if name in _FULL:
                raise DiskFull(f"{self.path}: no room to journal; free some, nothing was lost") from error
            if name.startswith(_LOCKED):
                raise DiskRefused(
                    f"{self.path}: another process holds its lock; end that one, nothing was lost"
                ) from error
            if name.startswith(_REFUSED):
                raise DiskRefused(
                    f"{self.path}: the disk refuses to journal ({error}); check the disk, its rights and the "
                    "limit of open files, nothing was lost"
                ) from error
            raise StateError(f"{self.path}: {error}; expected a coordinator's journal") from error


def _insert(table: str, names: Collection[str], manner: str = "") -> str:
    marks = ", ".join("?" * len(names))
    return f"INSERT {manner} INTO {table} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608


def _packed(record: Iterable[object]) -> list[object]:
    return [
        msgspec.json.encode(value).decode() if isinstance(value, Mapping | Struct | tuple) else value
        for value in record
    ]


def _device(row: Device) -> Device:
    held = tuple(_read(row.held, list[int]) or ())
    hello, telemetry = _read_bounded(row.hello, Hello), _read_bounded(row.telemetry, Telemetry)
    stamps = _read(row.stamps, dict[str, Stamp]) or {}
    return row._replace(online=bool(row.online), hello=hello, telemetry=telemetry, held=held, stamps=stamps)


def _version(row: Version) -> Version:
    return row._replace(
        report=_read(row.report, Report),
        tiers=_read(row.tiers, dict[str, str]) or {},
        carried=_read(row.carried, records.Carried) or records.Carried(),
        kept=bool(row.kept),
        origin=_read(row.origin, records.Origin),
    )


def _read_bounded(text: object, kind: type[T]) -> T | None:
    """Reads what a device said of itself; an older journal may hold more than is taken now."""
    try:
        return _read(text, kind)
    except msgspec.ValidationError:
        return None


def _read(text: object, kind: type[T]) -> T | None:
    return msgspec.json.decode(str(text), type=kind) if text is not None else None
