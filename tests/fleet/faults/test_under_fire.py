"""A short campaign of real processes from one seed; and the audit finds what is done to a copy of it.

The long ones are `python -m benchmarks.faults`.
"""

import asyncio
import json
import shutil
import sqlite3
import sys

import msgspec
import pytest

from benchmarks.faults.audit.audit import audit
from benchmarks.faults.record import RECORD, Settings
from benchmarks.faults.run import run
from benchmarks.faults.schedule import Fault, Wish

pytestmark = pytest.mark.skipif(
    sys.platform != "linux"
    or shutil.which("cc") is None
    or shutil.which("mosquitto", path="/usr/bin:/usr/sbin") is None,
    reason="needs Linux, a C compiler and the mosquitto program",
)
DEVICES = ("device-0", "device-1")
FAULTS = (
    Fault(0.3, "kill", "coordinator", 0.2),
    Fault(0.8, "kill", "device-0", 0.1),
    Fault(1.5, "block-down", "device-1", 0.5),
    Fault(2.5, "kill-worker", "device-1", 0.0),
    Fault(3.0, "forget", "broker", 0.1),
    Fault(3.6, "disk-full", "coordinator", 0.4),
    Fault(4.4, "clock", "coordinator", 0.5, -86400.0),
)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("campaign")
    wish = Wish(0, 4, 3, 5.0, DEVICES)
    asyncio.run(run(folder, Settings(wish, FAULTS, bound_s=60.0, patience_s=1.0), lambda told: None))
    return folder


@pytest.fixture
def copy(campaign, tmp_path):
    return shutil.copytree(campaign, tmp_path / "copy", symlinks=True)


def kinds(folder):
    return {finding.kind for finding in audit(folder).findings}


def execute(folder, statement, *values):
    with sqlite3.connect(folder / "coordinator/journal.sqlite") as db:
        found = db.execute(statement, values).fetchall()
    db.close()
    return found


def test_kills_a_partition_a_full_disk_and_a_clock_lose_nothing_and_count_nothing_twice(campaign):
    report = audit(campaign)
    assert report.findings == []
    assert report.num_kills == 4
    assert report.fates["merged"] >= len(DEVICES)
    assert report.num_summed >= 1
    assert {one.kind for one in report.times} == {fault.kind for fault in FAULTS}


def test_an_update_that_the_journal_forgets_is_lost(copy):
    ((update,),) = execute(copy, "SELECT id FROM updates WHERE merged_into IS NOT NULL LIMIT 1")
    execute(copy, "DELETE FROM updates WHERE id = ?", update)
    assert "lost" in kinds(copy)


def test_an_update_in_two_versions_is_counted_twice(copy):
    (_, one), (second, other) = execute(
        copy, "SELECT version, report FROM versions WHERE report IS NOT NULL ORDER BY version LIMIT 2"
    )
    report = json.loads(other)
    report["shares"].append(json.loads(one)["shares"][0])
    execute(copy, "UPDATE versions SET report = ? WHERE version = ?", json.dumps(report), second)
    assert "twice" in kinds(copy)


def test_a_version_that_holds_more_of_an_update_than_it_says_is_found_by_adding_it_up_again(copy):
    (number, text), *_ = execute(copy, "SELECT version, report FROM versions WHERE report IS NOT NULL")
    report = json.loads(text)
    report["shares"][0]["weight"] /= 2
    execute(copy, "UPDATE versions SET report = ? WHERE version = ?", json.dumps(report), number)
    found = audit(copy).findings
    assert [(one.kind, one.who) for one in found] == [("twice", f"version {number}")]


def test_one_task_that_counts_by_two_updates_counts_twice(copy):
    ((update,),) = execute(copy, "SELECT id FROM updates WHERE merged_into > 0 LIMIT 1")
    columns = [row[1] for row in execute(copy, "PRAGMA table_info(updates)") if row[1] not in ("seq", "id")]
    names = ", ".join(columns)
    insert = f"INSERT INTO updates (id, {names}) SELECT ?, {names} FROM updates WHERE id = ?"
    execute(copy, insert, "f" * 32, update)
    assert "twice" in kinds(copy)


def test_a_device_that_says_nothing_more_is_stuck(copy):
    lines = [msgspec.json.decode(line) for line in (copy / RECORD).read_bytes().splitlines()]
    over_s = next(line["at_s"] for line in lines if line["event"] == "over")
    told = [line for line in lines if line["who"] != "device-1" or line["at_s"] <= over_s]
    (copy / RECORD).write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in told))
    assert kinds(copy) == {"stuck"}


def test_a_receipt_for_what_the_journal_has_rejected_is_a_contradiction(copy):
    ((update,),) = execute(copy, "SELECT id FROM updates WHERE merged_into IS NOT NULL LIMIT 1")
    execute(copy, "UPDATE updates SET status = 'rejected', reason = 'malformed' WHERE id = ?", update)
    assert "contradiction" in kinds(copy)


def test_a_damaged_object_of_a_version_is_found(copy):
    ((master,),) = execute(copy, "SELECT master FROM versions WHERE version = 1")
    path = copy / "coordinator/objects" / master
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert "damaged" in kinds(copy)
