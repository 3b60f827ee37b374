"""A fleet whose state folders were written by the release before (commit ff7dddd) goes on where it stood.

`release_before/` was made by that commit's own coordinator and devices, on the toy base: two merges with
momentum, a rollback to version 1, an update of `lamp` in the buffer, one of `fan` that is spooled and being
received, and a task of `lock` that stopped at a checkpoint. The journal is SQL: text shows what is in it.
"""

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.ledger.sqlite import FILE
from coordinator.ledger.state import open_ledger
from edge.backends.toy import make_toy_base

WRITTEN = Path(__file__).parent / "release_before"
SETTINGS = {
    "strategy": "fedbuff",
    "stages": {"optimizer": "fedavgm"},
    "ranks": (4, 2),
    "encoding": "int8",
    "buffer_size": 2,
    "keep_versions": 2,
    "targets": ("q_proj",),
    "recipe": {"steps": 2, "seq_tokens": 64, "batch_tokens": 64},
}


@pytest.fixture
def old(home):
    """`home`, with the folders of the release before."""
    shutil.rmtree(home.base)
    home.base = make_toy_base(home.folder / "base", dim=8)
    shutil.copytree(WRITTEN, home.folder, dirs_exist_ok=True)
    script = home.folder / "coordinator" / "journal.sql"
    with closing(sqlite3.connect(script.with_name(FILE))) as db:
        db.executescript(script.read_text())
    script.unlink()
    return home


def test_what_it_wrote_is_read(old):
    with open_ledger(old.folder / "coordinator") as (journal, versions):
        assert [one.parent for one in versions.history()] == [None, 0, 1, 1]
        assert versions.lineage(3) == {3: 1, 1: 1, 0: 0}
        assert [update.device for update in journal.waiting()] == ["lamp"]
        assert [device.device for device in journal.devices()] == ["fan", "lamp", "lock"]
        assert {name: account.uploads for name, account in versions.accounts().items()} == {
            "fan": 2,
            "lamp": 2,
        }
        assert versions.state(versions.version(3)).moments.keys() == {"momentum-product"}


def test_its_fleet_goes_on(old):
    async def way():
        async with old.coordinator(**SETTINGS), old.running("fan", max_rank=2) as fan:
            (spooled,) = (old.folder / "fan" / "spool").iterdir()
            accepted = await fan.until("accepted")
            assert accepted.facts["base_version"] == 3
            assert not spooled.exists()
            async with old.running("lamp") as lamp:
                assert (await lamp.until("accepted")).facts["base_version"] == 4

    asyncio.run(way())
    with open_ledger(old.folder / "coordinator") as (_, versions):
        made = versions.version(4)
        assert made.parent == 3
        assert sorted(share.device for share in made.report.shares) == ["fan", "lamp"]
        assert made.carried.moments.keys() == {"momentum-product"}


def test_its_task_goes_on_from_the_checkpoint(old):
    (folder,) = (old.folder / "lock" / "task").iterdir()
    assert (folder / "checkpoint.safetensors").exists()

    async def way():
        async with old.coordinator(**SETTINGS), old.running("lock", max_rank=2) as lock:
            first = await lock.until("training")
            assert (first.facts["version"], first.facts["done"], first.facts["total"]) == (3, 3, 20)
            assert (await lock.until("accepted")).facts["base_version"] == 3

    asyncio.run(way())
