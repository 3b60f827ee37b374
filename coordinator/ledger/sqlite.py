"""The journal of a state folder, in SQLite; no file but this and `access` speaks SQL.

What a receipt says is here before the receipt is sent. Every change is one transaction, any thread may call
anything (`database`), and other processes may read and write at the same time.
"""
# ruff: noqa: D102 - `contract` says what the methods do

import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from msgspec import structs

from converters.files.content import is_file
from coordinator.ledger.access import AccessBook
from coordinator.ledger.contract import EVERYTHING, MAX_REFUSALS
from coordinator.ledger.database import FILE as FILE
from coordinator.ledger.database import Connect, Database
from coordinator.ledger.records import (
    Backlog,
    Device,
    DiscardReason,
    Refusal,
    Tally,
    Update,
    Verdict,
    Version,
)
from coordinator.ledger.rows import packed, read_device, read_record, read_version
from coordinator.strategies.contract import Account
from edge.errors import Rejected, StateError
from edge.protocol.messages import UpdateHeader
from edge.protocol.tiers import tier_rank

T = TypeVar("T")

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
        connect: Connect = sqlite3.connect,
    ) -> None:
        self.path = folder / FILE if folder else Path(":memory:")
        if fleet is None and not is_file(self.path):
            raise StateError(
                f"{folder}: holds no {FILE}; expected the folder given to `tunefleet serve --state`"
            )
        self._database = Database(self.path if folder else None, connect)
        self._rows, self._change = self._database.rows, self._database.change
        self.access = AccessBook(self._rows, self._change)
        try:
            if fleet is not None:
                self.agree({"fleet": fleet})
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._database.close()

    def hurry(self) -> None:
        self._database.hurry()

    def copy(self, path: Path) -> None:
        """Copies all of it to a new file, as of one moment; see `Database.copy`."""
        self._database.copy(path)

    # Facts.

    def meta(self, key: str) -> str | None:
        found = self._rows("SELECT value FROM meta WHERE key = ?", key)
        return str(found[0][0]) if found else None

    def note(self, key: str, value: str | None) -> None:
        with self._change() as db:
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
        with self._change() as db:
            db.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", facts.items())

    def data_version(self) -> int:
        return self._database.data_version()

    # Updates.

    def record(
        self,
        header: UpdateHeader,
        at: float,
        rejected: Rejected | None = None,
        norm: float | None = None,
        detail: str = "",
    ) -> int:
        return self.record_all([Verdict(header, at, rejected, norm, detail)])[0]

    def record_all(self, verdicts: Sequence[Verdict]) -> list[int]:
        with self._change() as db:
            return [_record(db, verdict) for verdict in verdicts]

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
        with self._change() as db:
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
        with self._change() as db:
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
        with self._change() as db:
            db.executemany("DELETE FROM payloads WHERE id = ?", [(update,) for update in updates])

    # Devices.

    def enrol(self, device: Device) -> None:
        with self._change(can_wait=True) as db:  # strangers may come often, and an fsync each would stop all
            db.execute(_insert("devices", Device._fields), packed(device))

    def devices(self) -> list[Device]:
        query = f"SELECT {', '.join(Device._fields)} FROM devices ORDER BY device"  # noqa: S608
        return self._records(read_device, query)

    def exchange(self, gone: Iterable[str], new: Iterable[Device]) -> None:
        with self._change() as db:
            db.executemany("DELETE FROM devices WHERE device = ?", [(device,) for device in gone])
            rows = [packed(device) for device in new]
            db.executemany(_insert("devices", Device._fields, "OR REPLACE"), rows)

    def save(self, devices: Iterable[Device]) -> None:
        names = [name for name in Device._fields if name not in ("device", "key", "first_seen")]
        changes = ", ".join(f"{name} = ?" for name in names)
        rows = [dict(zip(Device._fields, packed(device), strict=True)) for device in devices]
        with self._change() as db:
            db.executemany(
                f"UPDATE devices SET {changes} WHERE device = ?",  # noqa: S608
                [[*(row[name] for name in names), row["device"]] for row in rows],
            )

    # Versions.

    def commit(self, version: Version, accounts: Mapping[str, Account]) -> bool:
        with self._change() as db:
            (newest,) = db.execute("SELECT max(version) FROM versions").fetchone()
            if version.version != (0 if newest is None else newest + 1):
                return False
            if version.is_rollback:
                old = db.execute("SELECT kept FROM versions WHERE version = ?", (version.parent,)).fetchone()
                if not old or not old[0]:
                    return False
            shares = version.report.shares if version.report else ()
            if any(_status(db, one.update) == "discarded" for one in shares):  # banned meanwhile
                return False
            db.execute(_insert("versions", Version._fields), packed(version))
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
        with self._change() as db:
            db.execute("UPDATE versions SET loss = ?, exact = ? WHERE version = ?", (loss, exact, number))

    def forget(self, numbers: Collection[int]) -> None:
        with self._change() as db:
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
        "detail": rejected.detail if rejected else verdict.detail,
        "norm": verdict.norm,
    }
    is_new = db.execute(_insert("updates", row, "OR IGNORE"), list(row.values())).rowcount > 0
    if is_new and verdict.payload is not None:
        db.execute("INSERT OR REPLACE INTO payloads VALUES (?, ?)", (header.update, verdict.payload))
    return int(db.execute("SELECT seq FROM updates WHERE id = ?", (header.update,)).fetchone()[0])


def _status(db: sqlite3.Connection, update: str) -> str | None:
    row = db.execute("SELECT status FROM updates WHERE id = ?", (update,)).fetchone()
    return str(row[0]) if row else None


def _insert(table: str, names: Collection[str], manner: str = "") -> str:
    marks = ", ".join("?" * len(names))
    return f"INSERT {manner} INTO {table} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608
