"""Who was let in, who was banned and which tokens were used, in the journal of a state folder.

A device's key stands in two places: where it was pinned (`devices`), and where somebody has said something of
it (`access`). They are changed together, in one step, so that no coordinator ever sees them apart.
"""
# ruff: noqa: D102 - `contract` says what the methods do

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msgspec

from converters.files.text import decode_record
from converters.plain import plain
from coordinator.ledger.records import Access, Spent
from coordinator.ledger.rows import read_record
from edge.errors import StateError

ACCESS_TABLES = """
CREATE TABLE access (
    device TEXT PRIMARY KEY, key TEXT NOT NULL, source TEXT NOT NULL, at REAL NOT NULL,
    earlier TEXT NOT NULL DEFAULT '[]', banned_at REAL
);
CREATE TABLE spent_tokens (
    nonce TEXT NOT NULL, device TEXT NOT NULL, key TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (nonce, device, key)
);
CREATE TABLE forgotten (device TEXT PRIMARY KEY);
"""
GENERATION = "access_generation"  # in the journal's facts; rises with every change
MAX_EARLIER = 16  # keys of one device that are remembered
_WRITE = (
    "INSERT OR REPLACE INTO access (device, key, source, at, earlier, banned_at) VALUES (?, ?, ?, ?, ?, ?)"
)


class AccessBook:
    """`AccessRecords` in SQLite; its methods do what `contract` says.

    Args:
        rows: Reads, with a query and its values.
        transaction: Makes one change, all of it or nothing.
    """

    def __init__(
        self,
        rows: Callable[..., list[tuple[Any, ...]]],
        transaction: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._rows = rows
        self._transaction = transaction

    def generation(self) -> int:
        rows = self._rows("SELECT value FROM meta WHERE key = ?", GENERATION)
        return int(rows[0][0]) if rows else 0

    def all(self) -> list[Access]:
        return [_access(row) for row in self._rows(f"{_READ} ORDER BY device")]

    def find(self, device: str) -> Access | None:
        return next((_access(row) for row in self._rows(f"{_READ} WHERE device = ?", device)), None)

    def allow(self, devices: Mapping[str, str], at: float) -> None:
        with self._change() as db:
            faults = []
            for device, key in devices.items():
                known, pinned = _found(db, device), _pinned(db, device)
                faults += _conflict(device, key, known, pinned)
                earlier = known.earlier if known and known.key == key else ()
                _write(db, Access(device, key, "hand", at, earlier))
            if faults:
                raise StateError.of("nobody was let in", faults)

    def ban(self, device: str, at: float, keeps_updates: bool = False) -> int:
        with self._change() as db:
            known = _found(db, device) or Access(device, _pinned(db, device) or "", "settings", at)
            _write(db, known._replace(banned_at=at))
            if keeps_updates:
                return 0
            done = db.execute(f"UPDATE updates SET {_BANNED} WHERE device = ? AND {_WAITING}", (device,))  # noqa: S608
            return int(done.rowcount)

    def discard_late(self) -> int:
        if not self._rows(f"SELECT 1 FROM updates WHERE {_LATE} LIMIT 1"):  # noqa: S608
            return 0
        with self._transaction() as db:
            done = db.execute(f"UPDATE updates SET {_BANNED} WHERE {_LATE}")  # noqa: S608
            return int(done.rowcount)

    def unban(self, device: str) -> bool:
        with self._change() as db:
            known = _found(db, device)
            if known is None or known.banned_at is None:
                return False
            if known.source == "settings" and not known.earlier:
                db.execute("DELETE FROM access WHERE device = ?", (device,))
            else:
                _write(db, known._replace(banned_at=None))
            return True

    def forget(self, device: str) -> bool:
        with self._change() as db:
            known = _found(db, device)
            if known and known.banned_at is not None:
                raise StateError(
                    f"{device} is banned, and forgotten it could come again; leave it so, or "
                    f"`tunefleet device unban {device}` first"
                )
            db.execute("INSERT OR REPLACE INTO forgotten VALUES (?)", (device,))
            gone = [db.execute(f"DELETE FROM {table} WHERE device = ?", (device,)) for table in _OF_A_DEVICE]  # noqa: S608
            return any(one.rowcount for one in gone)

    def forgotten(self) -> list[str]:
        return [str(device) for (device,) in self._rows("SELECT device FROM forgotten ORDER BY device")]

    def clear(self, devices: Iterable[str]) -> None:
        with self._transaction() as db:
            db.executemany("DELETE FROM forgotten WHERE device = ?", [(device,) for device in devices])

    def pin(self, device: str, key: str) -> None:
        with self._transaction() as db:
            db.execute("UPDATE devices SET key = ? WHERE device = ?", (key, device))

    def rotate(self, device: str, keys: Sequence[str], at: float) -> None:
        with self._change() as db:
            known = _found(db, device) or Access(device, keys[0], "settings", at)
            earlier = (*known.earlier, *keys[:-1])[-MAX_EARLIER:]
            _write(db, known._replace(key=keys[-1], at=at, earlier=earlier))
            db.execute("UPDATE devices SET key = ? WHERE device = ?", (keys[-1], device))

    def spend(self, use: Spent, most: int) -> bool:
        with self._change() as db:
            uses = [Spent(*row) for row in db.execute(_USES, (use.nonce,))]
            if any((one.device, one.key) == (use.device, use.key) for one in uses):
                return True
            if len(uses) >= most:
                return False
            db.execute("INSERT INTO spent_tokens VALUES (?, ?, ?, ?)", use)
            _write(db, Access(use.device, use.key, "token", use.at))
            return True

    def spent(self, nonce: str) -> list[Spent]:
        return [Spent(*row) for row in self._rows(_USES, nonce)]

    @contextmanager
    def _change(self) -> Iterator[Any]:
        """Makes one change that a running coordinator has to notice."""
        with self._transaction() as db:
            yield db
            db.execute(_TURN, (GENERATION,))


_READ = f"SELECT {', '.join(Access._fields)} FROM access"  # noqa: S608
_TURN = "INSERT INTO meta VALUES (?, '1') ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
_USES = "SELECT nonce, device, key, at FROM spent_tokens WHERE nonce = ? ORDER BY at"
_BANNED = "status = 'discarded', reason = 'banned', detail = 'its device was banned'"
_WAITING = "status = 'accepted' AND merged_into IS NULL"
_BEFORE = "access.device = updates.device AND access.banned_at < updates.received_at"
_LATE = f"{_WAITING} AND EXISTS (SELECT 1 FROM access WHERE {_BEFORE})"  # noqa: S608
_OF_A_DEVICE = ("access", "devices")


def _access(row: Sequence[Any]) -> Access:
    found = Access(*row)

    def told(why: str) -> StateError:
        return StateError(f"is damaged: the earlier keys of {plain(found.device, 40)}: {why}")

    earlier = decode_record(str(found.earlier), list[str], told)
    return read_record(Access, found._replace(earlier=tuple(earlier)))


def _found(db: Any, device: str) -> Access | None:
    row = db.execute(f"{_READ} WHERE device = ?", (device,)).fetchone()
    return _access(row) if row else None


def _pinned(db: Any, device: str) -> str | None:
    row = db.execute("SELECT key FROM devices WHERE device = ?", (device,)).fetchone()
    return str(row[0]) if row else None


def _write(db: Any, access: Access) -> None:
    earlier = msgspec.json.encode(access.earlier).decode()
    db.execute(_WRITE, access._replace(earlier=earlier))  # type: ignore[arg-type]


def _conflict(device: str, key: str, known: Access | None, pinned: str | None) -> list[str]:
    """Finds why a device may not have this key: it is banned, or has another."""
    if known and known.banned_at is not None:
        return [f"{device} is banned; `tunefleet device unban {device}` first"]
    other = next((one for one in (known.key if known else None, pinned) if one not in (None, "", key)), None)
    if other is None:
        return []
    return [
        f"{device} has key {other[:16]}…; if it has a new one on purpose, "
        f"`tunefleet device forget {device}` first"
    ]
