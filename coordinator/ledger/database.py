"""The file of a journal: made, opened, brought up to date, read and changed by any thread.

It is written ahead (WAL) and through to the disk (synchronous=FULL): a change is there when `change` is left.
What reads has a connection of its own: with one for both, an event loop that looks something up would wait
for the disk of the thread that writes. SQLite's errors are told as ours, whatever the disk says.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from coordinator.ledger.schema import MIGRATIONS, NEW, SCHEMA
from edge.errors import DiskFull, DiskRefused, StateError
from edge.storage.disk import room_for, sync_folder

FILE = "journal.sqlite"
_BUSY_S = 30.0  # another process may write for so long; a command waits for it
_HURRY_S = 0.1  # an event loop does not: its messages and its presence would wait, too
# A quota or a file size limit is a full disk to its user, and SQLite calls it a failed write.
_FULL = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_SHMSIZE"})
_LOCKED = ("SQLITE_BUSY", "SQLITE_LOCKED")
_REFUSED = ("SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_NOMEM")

Connect = Callable[..., sqlite3.Connection]


class Database:
    """One journal's.

    Args:
        path: The file, made where it is missing; None forgets all with the process.
        connect: SQLite's, or what a test sets limits with.

    Raises:
        StateError: It is damaged, of a newer version or no journal.
        DiskRefused: There is no room to make it, or another process holds it.
    """

    def __init__(self, path: Path | None, connect: Connect = sqlite3.connect) -> None:
        self.path = path or Path(":memory:")
        if path and not path.exists():
            self._make()
        self._writing = self._reading = threading.RLock()
        self._data_version = 0
        with self._told():
            self._db = self._looking = self._open(connect)
            if not path:
                self._db.executescript(NEW)
        try:
            if path:
                self._reading, self._looking = threading.RLock(), self._open(connect)
            self._check_schema()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes it when nobody writes any more; nothing else may be called afterwards."""
        with self._writing, self._reading:
            self._looking.close()
            self._db.close()

    def hurry(self) -> None:
        """Waits no longer than an event loop may for another process."""
        self._db.execute(f"PRAGMA busy_timeout = {round(_HURRY_S * 1000)}")

    def copy(self, path: Path) -> None:
        """Copies all of it to a new file, as of one moment, whoever writes meanwhile.

        Raises:
            DiskRefused: There is no room; something may be at `path`.
        """
        with self._told(), closing(sqlite3.connect(path)) as copied, self._reading:
            self._looking.backup(copied)

    def data_version(self) -> int:
        """Returns a number that changes when another process has changed the file.

        Our own changes do not count, so the connection that makes them is asked. While it makes one, the
        answer is the last one, and the next has what came meanwhile.
        """
        if self._writing.acquire(blocking=False):
            try:
                with self._told():
                    self._data_version = int(self._db.execute("PRAGMA data_version").fetchone()[0])
            finally:
                self._writing.release()
        return self._data_version

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Reads."""
        with self._reading, self._told(), closing(self._looking.execute(query, values)) as cursor:
            return cursor.fetchall()

    @contextmanager
    def change(self, *, can_wait: bool = False) -> Iterator[sqlite3.Connection]:
        """Makes one change, all of it or nothing, on the disk when it returns.

        Args:
            can_wait: It is kept over a kill, and reaches the disk with the next change that cannot wait.
        """
        with self._writing, self._told():
            if can_wait:
                self._db.execute("PRAGMA synchronous = NORMAL")
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                if can_wait:
                    self._db.execute("PRAGMA synchronous = FULL")

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
        number = self.rows("PRAGMA user_version")[0][0]
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
        with self.change() as db:
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
