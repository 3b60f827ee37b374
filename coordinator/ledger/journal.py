"""What happened, in SQLite: devices and their keys, every update once, versions with lineage.

`journal.sqlite` is written ahead (WAL) and through to the disk (synchronous=FULL): what a receipt says is
here before the receipt is sent. Other processes (`status`, `history`, `rollback`) may read and write at the
same time; every change is one transaction. Invariants: an update's id stands here at most once, and what
was accepted stays in the buffer until the version that holds it is committed in the same transaction.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edge.errors import DiskFull, Rejected, StateError
from edge.protocol.messages import Reason, UpdateHeader
from edge.storage.disk import sync_folder

SCHEMA = 3
FILE = "journal.sqlite"
MAX_REFUSALS = 1000  # kept, newest: strangers must not fill the disk
_BUSY_S = 30.0
# A quota or a file size limit is a full disk to its user, and SQLite calls it a failed write.
_FULL = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_SHMSIZE"})

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE devices (
    device TEXT PRIMARY KEY, key TEXT NOT NULL, first_seen REAL NOT NULL, last_seen REAL NOT NULL,
    online INTEGER NOT NULL DEFAULT 0, epoch INTEGER NOT NULL DEFAULT 0, hello TEXT, telemetry TEXT,
    held TEXT NOT NULL DEFAULT '[]', astray REAL
);
CREATE TABLE accounts (
    device TEXT PRIMARY KEY, uploads INTEGER NOT NULL, weight REAL NOT NULL, credit REAL NOT NULL,
    cosine REAL NOT NULL, num_cosines INTEGER NOT NULL
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
    loss REAL, exact REAL, carried TEXT NOT NULL DEFAULT '{}', origin TEXT
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
_FROM_2 = """
ALTER TABLE versions ADD COLUMN origin TEXT;
ALTER TABLE devices ADD COLUMN astray REAL;
"""
_MIGRATIONS = {1: _FROM_1, 2: _FROM_2}

Status = Literal["accepted", "rejected", "discarded"]
# No receipt bears it: the device was told `accepted` when its update came.
DiscardReason = Reason | Literal["unmergeable"]


class Update(NamedTuple):
    """One update as the journal knows it."""

    id: str
    device: str
    tier: str
    base_version: int
    attempt: int
    sha256: str
    encoding: str
    size_bytes: int
    num_examples: int
    num_tokens: int
    num_steps: int
    seconds: float
    loss_before: float | None
    loss_after: float | None
    received_at: float  # Unix time
    status: Status  # `discarded`: accepted, and in no version after all; by a rollback, or unmergeable
    reason: DiscardReason | None
    detail: str
    merged_into: int | None  # version; None while it waits in the buffer
    staleness: int | None  # when merged
    weight: float | None  # when merged
    seq: int = 0  # in order of arrival, over all devices


class Refusal(NamedTuple):
    """A message that did not prove whose it is, and says nothing about the update it names."""

    at: float  # Unix time
    device: str
    id: str
    reason: str
    detail: str


class Journal:
    """The open journal of a state folder; the roster and the versions keep rows in it.

    Args:
        folder: The state folder.
        fleet: Makes the journal where it is missing, and refuses another fleet's; None only opens.

    Raises:
        StateError: It is missing, damaged, of a newer version or of another fleet.
        DiskFull: There is no room to make it.
    """

    def __init__(self, folder: Path, fleet: str | None = None) -> None:
        self.path = folder / FILE
        if fleet is None and not self.path.is_file():
            raise StateError(
                f"{folder}: holds no {FILE}; expected the folder given to `tunefleet serve --state`"
            )
        if not self.path.exists():
            self._make()
        with self._told():
            # Any thread may use it, one at a time.
            self._db = sqlite3.connect(
                self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA synchronous = FULL")
        try:
            self._check_schema()
            if fleet is not None:
                self.agree({"fleet": fleet})
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Ends the connection."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One change, all of it or nothing, on the disk when it returns.

        Raises:
            DiskFull: Nothing was changed.
            StateError: The database is damaged.
        """
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a question."""
        with self._told(), closing(self._db.execute(query, values)) as cursor:
            return cursor.fetchall()

    def copy(self, path: Path) -> None:
        """Copies all of it to a new file, as of one moment, whoever writes meanwhile.

        Raises:
            DiskFull: There is no room; something may be at `path`.
        """
        with self._told(), closing(sqlite3.connect(path)) as copied:
            self._db.backup(copied)

    def data_version(self) -> int:
        """A number that changes when another process has changed the journal."""
        return int(self.rows("PRAGMA data_version")[0][0])

    def meta(self, key: str) -> str | None:
        """A fact about the whole state folder, such as the base model's fingerprint."""
        found = self.rows("SELECT value FROM meta WHERE key = ?", (key,))
        return str(found[0][0]) if found else None

    def note(self, key: str, value: str | None) -> None:
        """Writes down a fact that changes, such as how far the next version is; None takes it out.

        Raises:
            DiskFull: The old one stands.
        """
        with self.transaction() as db:
            if value is None:
                db.execute("DELETE FROM meta WHERE key = ?", (key,))
            else:
                db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def agree(self, facts: Mapping[str, str]) -> None:
        """Writes down facts that must never change, and refuses others than those written.

        Raises:
            StateError: Naming every fact that differs.
        """
        known = {key: self.meta(key) for key in facts}
        faults = [
            f"is of {key} {known[key]}, expected {facts[key]}"
            for key in facts
            if known[key] not in (None, facts[key])
        ]
        if faults:
            raise StateError.of(str(self.path), faults, "give another --state")
        with self.transaction() as db:
            db.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", list(facts.items()))

    def update(self, update_id: str) -> Update | None:
        """The update of that id, or None where the journal has never heard of it."""
        found = self._updates("WHERE id = ?", (update_id,))
        return found[0] if found else None

    def waiting(self) -> list[Update]:
        """The buffer: accepted and in no version yet, in order of arrival."""
        return self._updates("WHERE status = 'accepted' AND merged_into IS NULL ORDER BY seq")

    def is_stranded(self, version: int) -> bool:
        """Whether an update that began from `version` was accepted and lost, and its device waits.

        The device was told that its update counts, and trains on no version more often than it may.
        """
        found = self.rows(
            "SELECT 1 FROM updates WHERE status = 'discarded' AND base_version = ? LIMIT 1", (version,)
        )
        return bool(found)

    def last_seq(self) -> int:
        """Of the latest update; 0 where there is none."""
        return int(self.rows("SELECT coalesce(max(seq), 0) FROM updates")[0][0])

    def updates(self, limit: int = 1000) -> list[Update]:
        """The latest updates, newest first."""
        return self._updates("ORDER BY seq DESC LIMIT ?", (limit,))

    def refusals(self, limit: int = 100) -> list[Refusal]:
        """The latest messages that were refused, newest first."""
        fields = ", ".join(Refusal._fields)
        return [
            Refusal(*row)
            for row in self.rows(f"SELECT {fields} FROM refusals ORDER BY seq DESC LIMIT ?", (limit,))  # noqa: S608
        ]

    def record(self, header: UpdateHeader, at: float, rejected: Rejected | None = None) -> int:
        """Writes an update down, accepted or rejected; one that is already there stays as it is.

        Returns:
            Its `seq`.

        Raises:
            DiskFull: Nothing was written, and no receipt may be sent.
        """
        row = {
            "id": header.update,
            "received_at": at,
            "status": "rejected" if rejected else "accepted",
            "reason": rejected.reason if rejected else None,
            "detail": rejected.detail if rejected else "",
        } | {
            name: getattr(header, name)
            for name in (
                "tier", "base_version", "attempt", "sha256", "encoding", "size_bytes", "num_examples",
                "num_tokens", "num_steps", "seconds", "loss_before", "loss_after",
            )
        }  # fmt: skip
        row["device"] = header.device_id
        names = ", ".join(row)
        marks = ", ".join("?" * len(row))
        with self.transaction() as db:
            db.execute(f"INSERT OR IGNORE INTO updates ({names}) VALUES ({marks})", list(row.values()))  # noqa: S608
            return int(db.execute("SELECT seq FROM updates WHERE id = ?", (header.update,)).fetchone()[0])

    def discard(self, updates: Sequence[str], reason: DiscardReason, detail: str) -> None:
        """Takes accepted updates out of the buffer for good."""
        with self.transaction() as db:
            db.executemany(
                "UPDATE updates SET status = 'discarded', reason = ?, detail = ? WHERE id = ?",
                [(reason, detail, update) for update in updates],
            )

    def refuse(self, refusal: Refusal) -> None:
        """Writes down a message that proved nobody's; only the latest are kept."""
        with self.transaction() as db:
            marks = ", ".join("?" * len(refusal))
            db.execute(f"INSERT INTO refusals ({', '.join(refusal._fields)}) VALUES ({marks})", refusal)  # noqa: S608
            db.execute(
                "DELETE FROM refusals WHERE seq <= (SELECT max(seq) FROM refusals) - ?", (MAX_REFUSALS,)
            )

    def _updates(self, condition: str, values: tuple[Any, ...] = ()) -> list[Update]:
        fields = ", ".join(Update._fields)
        return [Update(*row) for row in self.rows(f"SELECT {fields} FROM updates {condition}", values)]  # noqa: S608

    def _make(self) -> None:
        """Whole from the start: other processes may open it as soon as its name is there."""
        draft = self.path.with_name(f".{FILE}.partial")
        draft.unlink(missing_ok=True)
        with self._told(), closing(sqlite3.connect(draft, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;")
        draft.replace(self.path)
        sync_folder(self.path.parent)

    def _check_schema(self) -> None:
        number = self.rows("PRAGMA user_version")[0][0]
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
        """All of it or nothing; another process may have been faster."""
        with self.transaction() as db:
            begun = db.execute("PRAGMA user_version").fetchone()[0]
            for number in range(begun, SCHEMA):
                for statement in _MIGRATIONS[number].split(";"):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA}")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if error.sqlite_errorname in _FULL:
                raise DiskFull(f"{self.path}: no room to journal; free some, nothing was lost") from error
            raise StateError(f"{self.path}: {error}; expected a coordinator's journal") from error
