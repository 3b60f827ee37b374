import asyncio
import shutil
import sqlite3
import stat
from contextlib import closing

import pytest

from coordinator.first_version import make_first_version
from coordinator.initial_adapter import settle
from coordinator.ledger.backup import copy_file, make_backup
from coordinator.ledger.state import CoordinatorState
from coordinator.observers.status import read_pace
from edge.errors import DiskFull, StateError


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_backup_made_beside_a_running_coordinator_is_served_as_it_was(fleet, tmp_path):
    """Versions, the buffer with its payloads, devices, and the key that devices have pinned."""

    async def way():
        device = fleet.device("x")
        async with device.joined():
            async with fleet.serving():
                for attempt in range(3):
                    assert (await device.teach(seed=attempt, attempt=attempt))[0].status == "accepted"
                await device.manifest(version=1)
                made = make_backup(fleet.folder, tmp_path / "copies" / "one")
                assert (made.version, made.waiting) == (1, 1)
                for attempt in (3, 4):
                    await device.teach(seed=attempt, version=1, attempt=attempt)
                await device.manifest(version=2)
            shutil.rmtree(fleet.folder)
            shutil.copytree(made.path, fleet.folder)
            fleet.said.clear()
            device.manifests.clear()
            async with fleet.serving():
                await device.teach(seed=9, version=1, attempt=9)
                await device.until(lambda: any("version 2: 2 updates of x" in text for text in fleet.said))
        return made

    made = asyncio.run(way())
    assert any(text.startswith("fleet home at version 1") for text in fleet.said)
    assert (made.num_files, made.size_bytes) == (
        len(names(tmp_path / "copies" / "one")),
        sum(path.stat().st_size for path in (tmp_path / "copies" / "one").rglob("*") if path.is_file()),
    )
    assert stat.S_IMODE((tmp_path / "copies/one/identity.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "copies/one").stat().st_mode) == 0o700
    with closing(sqlite3.connect(tmp_path / "copies/one/journal.sqlite")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_is_collected_while_it_is_copied_is_not_missed(fleet, tmp_path):
    """Between the journal and the objects a version is made: the journal is copied again."""
    asked = []

    def collected_once(source, target):
        asked.append(source)
        if "objects" in source.parts and [path.parent.name for path in asked].count("objects") == 1:
            raise FileNotFoundError
        copy_file(source, target)

    async def way():
        device = fleet.device("x")
        async with device.joined(), fleet.serving(keep_versions=1, buffer_size=1, max_staleness=0):
            await device.teach(seed=0)
            await device.manifest(version=1)
            make_backup(fleet.folder, tmp_path / "copy", collected_once)

    asyncio.run(way())
    assert len(asked) == len(set(asked)) + 1
    with CoordinatorState(tmp_path / "copy", "home") as state:
        current = state.versions.current()
        assert current.version == 1
        assert state.versions.whole(current)
        assert state.recover() == []
        assert read_pace(state.journal) is None


def test_a_state_that_lacks_a_file_is_told_and_nothing_is_written(fleet, tmp_path):
    with CoordinatorState(fleet.folder, "home") as state:
        settled, given = settle(fleet.config(), state.journal)
        version = make_first_version(settled, state, 0.0, given)
        state.versions.objects.remove([version.master])
    with pytest.raises(StateError, match=r"objects/.* is missing, and the journal refers to it"):
        make_backup(fleet.folder, tmp_path / "copy")
    assert not [path for path in tmp_path.iterdir() if "copy" in path.name]


def test_what_is_there_is_not_overwritten(fleet, tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine").write_text("")
    (tmp_path / "file").write_text("")
    with CoordinatorState(fleet.folder, "home"):
        for name in ("copy", "file"):
            with pytest.raises(StateError, match=f"{name}: is not empty; give a folder that is new"):
                make_backup(fleet.folder, tmp_path / name)
        (tmp_path / "empty").mkdir()
        assert make_backup(fleet.folder, tmp_path / "empty").version is None
    assert names(tmp_path / "copy") == ["mine"]


def test_a_folder_that_is_no_coordinators_is_told(tmp_path):
    with pytest.raises(StateError, match="expected the folder given to `tunefleet serve --state`"):
        make_backup(tmp_path, tmp_path / "copy")


def test_a_full_disk_leaves_nothing(fleet, tmp_path):
    def full(source, target):
        target.touch()
        raise OSError(28, "No space left on device")

    with CoordinatorState(fleet.folder, "home"):
        with pytest.raises(DiskFull, match=r"copy: no room for a backup"):
            make_backup(fleet.folder, tmp_path / "copy", full)
        assert not [path for path in tmp_path.iterdir() if "copy" in path.name]
