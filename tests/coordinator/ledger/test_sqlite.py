import functools
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from coordinator.ledger.records import Carried, Device, Verdict
from coordinator.ledger.sqlite import FILE, SqliteJournal
from coordinator.ledger.state import CoordinatorState, open_ledger
from coordinator.strategies.contract import Account
from edge.errors import DiskFull, StateError


@pytest.fixture
def header(make_header):
    return lambda number=0, **changes: make_header(attempt=number, **changes)


@pytest.fixture
def journal(tmp_path):
    with closing(SqliteJournal(tmp_path, "home")) as opened:
        yield opened


def test_another_process_sees_what_was_committed(tmp_path, journal, header):
    journal.record(header(), at=1.0)
    with closing(SqliteJournal(tmp_path)) as other:
        before = journal.data_version()
        assert len(other.waiting()) == 1
        other.discard([header().update], "rolled-back", "gone")
    assert journal.data_version() != before
    assert journal.update(header().update).status == "discarded"


def test_a_newcomer_costs_no_fsync_and_the_verdict_after_it_does(tmp_path, header):
    said = []

    def connect(*arguments, **settings):
        db = sqlite3.connect(*arguments, **settings)
        db.set_trace_callback(said.append)
        return db

    def durability():
        found = [line for line in said if line.startswith(("PRAGMA synchronous", "COMMIT"))]
        said.clear()
        return found

    with closing(SqliteJournal(tmp_path, "home", connect)) as journal:
        durability()
        journal.enrol(Device("lamp", "ab", 1.0, 1.0))
        assert durability() == ["PRAGMA synchronous = NORMAL", "COMMIT", "PRAGMA synchronous = FULL"]
        journal.record(header(), at=1.0)
        assert durability() == ["COMMIT"]


def test_who_reads_waits_for_nobody_who_writes(tmp_path, header):
    in_hand, goes_on = threading.Event(), threading.Event()

    class Slow(sqlite3.Connection):
        def execute(self, statement, *values):
            if statement == "COMMIT":
                in_hand.set()
                assert goes_on.wait(10)
            return super().execute(statement, *values)

    goes_on.set()  # while it is made
    with closing(
        SqliteJournal(tmp_path, "home", functools.partial(sqlite3.connect, factory=Slow))
    ) as journal:
        goes_on.clear()
        in_hand.clear()
        with ThreadPoolExecutor(1) as beside:
            writing = beside.submit(journal.record, header(), 1.0)
            assert in_hand.wait(10)
            assert (journal.update(header().update), journal.data_version()) == (None, journal.data_version())
            goes_on.set()
            assert writing.result() == 1
        assert journal.update(header().update).seq == 1


def test_what_this_process_writes_is_no_other_processs_change(journal, header):
    before = journal.data_version()
    journal.record(header(), at=1.0)
    assert journal.data_version() == before


def test_of_many_updates_all_are_written_down_or_none(journal, header):
    what_sqlite_cannot_hold = object()
    with pytest.raises(StateError, match="type 'object' is not supported"):
        journal.record_all(
            [Verdict(header(1), 1.0, payload=b"one"), Verdict(header(2), what_sqlite_cannot_hold)]
        )
    assert (journal.updates(), journal.payloads()) == ([], set())


def test_a_folder_of_another_fleet_is_refused(tmp_path, journal):
    with pytest.raises(StateError, match="is of fleet home, expected other; give another --state"):
        SqliteJournal(tmp_path, "other")


def test_a_journal_of_a_newer_version_is_refused(tmp_path):
    SqliteJournal(tmp_path, "home").close()
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StateError, match="has version 99, this tunefleet reads up to 4; upgrade it"):
        SqliteJournal(tmp_path, "home")


VERSION_1 = """
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
INSERT INTO meta VALUES ('fleet', 'home');
INSERT INTO devices VALUES ('x', 'ab', 1.0, 2.0, 1, 3, NULL, NULL);
INSERT INTO versions VALUES (0, NULL, 0, 5.0, 'master', NULL, '{"r2":"tier"}', NULL, 1, 1.5, 0.5);
PRAGMA user_version = 1;
"""


def test_a_journal_of_version_1_gets_what_it_lacks_and_loses_nothing(tmp_path):
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.executescript(VERSION_1)
        for number, weight in ((1, 0.5), (2, 0.25), (3, None)):
            db.execute(
                "INSERT INTO updates VALUES (?, ?, 'x', 'r2', 0, 0, 'cd', 'f32', 5, 1, 2, 3, 4.0, 2.0, 1.0,"
                " 0.0, 'accepted', NULL, '', ?, ?, ?)",
                (number, f"{number:032x}", None if weight is None else 1, 0, weight),
            )
        db.commit()
    for _ in range(2):
        with open_ledger(tmp_path) as (journal, versions):
            assert versions.accounts() == {"x": Account(uploads=2, weight=0.75, credit=0.0)}
            (made,) = versions.history()
            assert (made.loss, made.tiers, made.carried) == (1.5, {"r2": "tier"}, Carried())
            assert [(device.held, device.astray) for device in journal.devices()] == [((), None)]
            assert [update.attempt for update in journal.waiting()] == [0]


def test_a_journal_of_version_2_gets_what_it_lacks(tmp_path, age):
    SqliteJournal(tmp_path, "home").close()
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        age(db, 2)
        db.execute("INSERT INTO devices (device, key, first_seen, last_seen) VALUES ('x', 'ab', 1.0, 2.0)")
        db.commit()
    for _ in range(2):
        with closing(SqliteJournal(tmp_path)) as journal:
            assert [(device.device, device.astray) for device in journal.devices()] == [("x", None)]


def test_every_session_has_a_later_epoch_whatever_the_clock_says(tmp_path):
    epochs = []
    for at, heard in ((1000.0, 0), (1000.0, 0), (1.0, 0), (2000.0, 0), (1.0, 5_000_000), (1.0, 0)):
        with CoordinatorState(tmp_path, "home") as state:
            epochs.append(state.begin_session(at, heard).epoch)
    assert epochs == [1_000_000, 1_000_001, 1_000_002, 2_000_000, 5_000_001, 5_000_002]


@pytest.mark.parametrize("content", [b"", b"no database at all " * 500])
def test_a_damaged_journal_is_refused(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(StateError, match=r"journal\.sqlite"):
        SqliteJournal(tmp_path, "home")


def test_a_missing_journal_is_refused_where_only_a_report_is_wanted(tmp_path):
    with pytest.raises(StateError, match="expected the folder given to `tunefleet serve --state`"):
        SqliteJournal(tmp_path)


def test_two_coordinators_cannot_share_a_folder(tmp_path):
    second = CoordinatorState(tmp_path, "home")
    with (
        CoordinatorState(tmp_path, "home"),
        pytest.raises(StateError, match="another coordinator is running"),
    ):
        second.__enter__()


def test_the_coordinators_key_stays_and_is_its_own(tmp_path):
    with CoordinatorState(tmp_path, "home") as state:
        key = state.key
    with CoordinatorState(tmp_path, "home") as state:
        assert state.key == key
    assert (tmp_path / "identity.key").stat().st_mode & 0o777 == 0o600


KILLED = """
import os, signal, sys
from pathlib import Path
from coordinator.ledger.sqlite import SqliteJournal
journal = SqliteJournal(Path(sys.argv[1]), "home")
journal.note("whole", "1")
class Fatal(dict):
    def items(self):
        yield "half", "1"
        os.kill(os.getpid(), signal.SIGKILL)
journal.agree(Fatal())
"""


def test_a_kill_leaves_whole_transactions_only(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    with closing(SqliteJournal(tmp_path)) as journal:
        assert (journal.meta("whole"), journal.meta("half")) == ("1", None)


FULL = """
import resource, sys
from pathlib import Path
from coordinator.ledger.sqlite import SqliteJournal
from edge.errors import DiskFull
journal = SqliteJournal(Path(sys.argv[1]), "home")
journal.agree({"before": "1"})
resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
try:
    journal.agree({"after": "1"})
except DiskFull as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.agree({"mended": "1"})
print(journal.meta("before"), journal.meta("after"), journal.meta("mended"))
"""


def test_a_full_disk_is_told_and_changes_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    told, facts = done.stdout.splitlines()
    assert "no room to journal" in told
    assert facts == "1 None 1"


def test_what_is_not_a_full_disk_is_not_called_one(tmp_path):
    def connect_small(*arguments, **settings):
        db = sqlite3.connect(*arguments, **settings)
        db.execute("PRAGMA max_page_count = 1")
        return db

    with closing(SqliteJournal(tmp_path, "home", connect_small)) as journal:
        with pytest.raises(DiskFull):
            journal.note("x", "0" * 1_000_000)
        with closing(sqlite3.connect(tmp_path / FILE)) as db:
            db.execute("DROP TABLE updates")
        with pytest.raises(StateError, match="no such table"):
            journal.waiting()
