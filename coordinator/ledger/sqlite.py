"""The journal of a state folder, in SQLite; no file but this and `access` speaks SQL.

`journal.sqlite` is written ahead (WAL) and through to the disk (synchronous=FULL): what a receipt says is
here before the receipt is sent. Every change is one transaction, and other processes may read and write at
the same time. A journal of an older schema is brought up to date when it is opened.

What reads has a connection of its own: with one for both, an event loop that looks an update up would wait
for the disk of the thread that writes others down. Any thread may call anything.
"""
# ruff: noqa: D102 - `contract` says what the methods do

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, structs

from converters.files.content import is_file
from coordinator.ledger.access import AccessBook
from coordinator.ledger.contract import EVERYTHING, MAX_REFUSALS
from coordinator.ledger.records import Device, DiscardReason, Refusal, Tally, Update, Verdict, Version
from coordinator.ledger.rows import read_device, read_record, read_version
from coordinator.ledger.schema import MIGRATIONS, NEW, SCHEMA
from coordinator.strategies.contract import Account
from edge.errors import DiskFull, DiskRefused, Rejected, StateError
from edge.protocol.messages import UpdateHeader
from edge.storage.disk import room_for, sync_folder

T = TypeVar("T")
FILE = "journal.sqlite"
_BUSY_S = 30.0  # another process may write for so long; a command waits for it
_HURRY_S = 0.1  # an event loop does not: its messages and its presence would wait, too
# A quota or a file size limit is a full disk to its user, and SQLite calls it a failed write.
_FULL = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_SHMSIZE"})
_LOCKED = ("SQLITE_BUSY", "SQLITE_LOCKED")
_REFUSED = ("SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_NOMEM")

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
        if fleet is None and not is_file(self.path):
            raise StateError(
                f"{folder}: holds no {FILE}; expected the folder given to `tunefleet serve --state`"
            )
        if folder and not self.path.exists():
            self._make()
        self._writing = threading.RLock()
        self._data_version = 0
        with self._told():
            self._db = self._looking = self._open(connect)
            if not folder:
                self._db.executescript(NEW)
        self.access = AccessBook(self._rows, self._transaction)
        self._reading = self._writing
        try:
            if folder:
                self._reading, self._looking = threading.RLock(), self._open(connect)
            self._check_schema()
            if fleet is not None:
                self.agree({"fleet": fleet})
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._looking.close()
        self._db.close()

    def hurry(self) -> None:
        self._db.execute(f"PRAGMA busy_timeout = {round(_HURRY_S * 1000)}")

    def copy(self, path: Path) -> None:
        """Copies all of it to a new file, as of one moment, whoever writes meanwhile.

        Raises:
            DiskRefused: There is no room; something may be at `path`.
        """
        with self._told(), closing(sqlite3.connect(path)) as copied, self._reading:
            self._looking.backup(copied)

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
        # Our own changes do not count, so the connection that makes them is asked; while it makes one, the
        # answer is the last one, and the next has what came meanwhile.
        if self._writing.acquire(blocking=False):
            try:
                with self._told():
                    self._data_version = int(self._db.execute("PRAGMA data_version").fetchone()[0])
            finally:
                self._writing.release()
        return self._data_version

    # Updates.

    def record(self, header: UpdateHeader, at: float, rejected: Rejected | None = None) -> int:
        return self.record_all([Verdict(header, at, rejected)])[0]

    def record_all(self, verdicts: Sequence[Verdict]) -> list[int]:
        with self._transaction() as db:
            return [_record(db, verdict) for verdict in verdicts]

    def update(self, update_id: str) -> Update | None:
        return next(iter(self._updates("WHERE id = ?", update_id)), None)

    def waiting(self) -> list[Update]:
        return self._updates("WHERE status = 'accepted' AND merged_into IS NULL ORDER BY seq")

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
        return dict(self._records(lambda row: (str(row[0]), read_record(Tally, row[1:-1])), _TALLIES))

    def refuse(self, refusal: Refusal) -> None:
        with self._transaction() as db:
            db.execute(_insert("refusals", Refusal._fields), refusal)
            db.execute(
                "DELETE FROM refusals WHERE seq <= (SELECT max(seq) FROM refusals) - ?", (MAX_REFUSALS,)
            )

    def refusals(self, limit: int = 100) -> list[Refusal]:
        query = f"SELECT {', '.join(Refusal._fields)} FROM refusals ORDER BY seq DESC LIMIT ?"  # noqa: S608
        return self._records(partial(read_record, Refusal), query, limit)

    # Payloads.

    def payload(self, update_id: str) -> bytes | None:
        found = self._rows("SELECT content FROM payloads WHERE id = ?", update_id)
        return bytes(found[0][0]) if found else None

    def payloads(self) -> set[str]:
        return {update_id for (update_id,) in self._rows("SELECT id FROM payloads")}

    def drop(self, updates: Collection[str]) -> None:
        with self._transaction() as db:
            db.executemany("DELETE FROM payloads WHERE id = ?", [(update,) for update in updates])

    # Devices.

    def enrol(self, device: Device) -> None:
        with self._transaction() as db:
            db.execute(_insert("devices", Device._fields), _packed(device))

    def devices(self) -> list[Device]:
        query = f"SELECT {', '.join(Device._fields)} FROM devices ORDER BY device"  # noqa: S608
        return self._records(read_device, query)

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
        query = f"SELECT device, {', '.join(Account.__struct_fields__)} FROM accounts"  # noqa: S608
        return dict(self._records(lambda row: (str(row[0]), read_record(Account, row[1:])), query))

    # The database.

    def _updates(self, condition: str, *values: Any) -> list[Update]:
        query = f"SELECT {', '.join(Update._fields)} FROM updates {condition}"  # noqa: S608
        return self._records(partial(read_record, Update), query, *values)

    def _versions(self, condition: str, *values: Any) -> list[Version]:
        query = f"SELECT {', '.join(Version._fields)} FROM versions {condition}"  # noqa: S608
        return self._records(read_version, query, *values)

    def _records(self, read: Callable[[Sequence[Any]], T], query: str, *values: Any) -> list[T]:
        """Reads rows as records.

        Raises:
            StateError: A row is damaged.
        """
        rows = self._rows(query, *values)
        try:
            return [read(row) for row in rows]
        except StateError as error:
            raise StateError(f"{self.path}: {error}; restore it from a backup") from error

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._reading, self._told(), closing(self._looking.execute(query, values)) as cursor:
            return cursor.fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Makes one change, all of it or nothing, on the disk when it returns."""
        with self._writing, self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _open(self, connect: Callable[..., sqlite3.Connection]) -> sqlite3.Connection:
        # Any thread may use it, one at a time: each connection has its lock.
        opened = connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        opened.execute("PRAGMA synchronous = FULL")
        return opened

    def _make(self) -> None:
        """Makes the file, whole from the start: others may open it as soon as its name is there."""
        draft = self.path.with_name(f".{FILE}.partial")
        with room_for("the journal", self.path.parent):
            draft.unlink(missing_ok=True)
            with self._told(), closing(sqlite3.connect(draft, isolation_level=None)) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(NEW)
            draft.replace(self.path)
            sync_folder(self.path.parent)

    def _check_schema(self) -> None:
        number = self._rows("PRAGMA user_version")[0][0]
        if number in MIGRATIONS:
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
                for statement in MIGRATIONS[number].split(";"):
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
                cause = "" if name == "SQLITE_FULL" else ", or the disk fails"
                raise DiskFull(
                    f"{self.path}: no room to journal{cause}; free some, nothing was lost"
                ) from error
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
        except UnicodeDecodeError as error:  # Python's, of the text of SQLite's message
            raise StateError(f"{self.path}: is damaged; expected a coordinator's journal") from error


def _record(db: sqlite3.Connection, verdict: Verdict) -> int:
    """Writes one verdict down within a transaction, where it is not there already, and returns its `seq`."""
    header, rejected = verdict.header, verdict.rejected
    shared = structs.asdict(header)
    row = {name: shared[name] for name in Update._fields if name in shared} | {
        "id": header.update,
        "device": header.device_id,
        "received_at": verdict.at,
        "status": "rejected" if rejected else "accepted",
        "reason": rejected.reason if rejected else None,
        "detail": rejected.detail if rejected else "",
    }
    is_new = db.execute(_insert("updates", row, "OR IGNORE"), list(row.values())).rowcount > 0
    if is_new and verdict.payload is not None:
        db.execute("INSERT OR REPLACE INTO payloads VALUES (?, ?)", (header.update, verdict.payload))
    return int(db.execute("SELECT seq FROM updates WHERE id = ?", (header.update,)).fetchone()[0])


def _insert(table: str, names: Collection[str], manner: str = "") -> str:
    marks = ", ".join("?" * len(names))
    return f"INSERT {manner} INTO {table} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608


def _packed(record: Iterable[object]) -> list[object]:
    return [
        msgspec.json.encode(value).decode() if isinstance(value, Mapping | Struct | tuple) else value
        for value in record
    ]
