"""Devices follow a restored coordinator, and nobody else, back to an older version."""

import asyncio
import shutil
import sqlite3

import pytest

from coordinator.ledger.backup import make_backup
from edge.device.epochs import FORGOTTEN
from edge.protocol.topics import Topics
from edge.transport.memory import MemoryBroker, MemoryTransport

TOPICS = Topics("home")
ONE_STEP = {"steps": 1, "seq_tokens": 64, "batch_tokens": 128}
SOME_STEPS = {"steps": 5, "seq_tokens": 64, "batch_tokens": 128}
MANY_STEPS = {"steps": 30, "seq_tokens": 64, "batch_tokens": 128}


class Restorable:
    """The coordinator's folder, and one backup of it."""

    def __init__(self, home):
        self.folder, self.copy = home.folder / "coordinator", home.folder / "backup"

    def backup(self):
        return make_backup(self.folder, self.copy)

    def restore(self):
        shutil.rmtree(self.folder)
        shutil.copytree(self.copy, self.folder)


@pytest.fixture
def state(home):
    return Restorable(home)


def versions_of(device, kind):
    return [event.facts["base_version"] for event in device.of(kind)]


async def grow(home, newest, device_id="lamp", **changes):
    """A session of the coordinator that comes to version `newest`; the update on that stays in the spool."""
    async with (
        home.running(device_id, slowdown=20.0, **changes) as device,
        home.coordinator(recipe=SOME_STEPS) as coordinator,
    ):
        await until_training_on(device, newest)
        coordinator.stop()
        async with asyncio.timeout(60):
            while device.state.memory.version != newest or device.state.memory.task:
                await asyncio.sleep(0.01)


async def until_training_on(device, version):
    async with asyncio.timeout(60):
        while version not in (event.facts["version"] for event in device.of("training")):
            device.told.clear()
            await device.told.wait()


def test_a_restored_coordinator_is_followed_and_the_task_in_hand_is_dropped(home, state):
    async def way():
        async with home.running(slowdown=20.0) as device:
            async with home.coordinator(recipe=MANY_STEPS):
                await until_training_on(device, 1)
                assert state.backup().version == 1
                await until_training_on(device, 2)
            state.restore()
            async with home.coordinator(recipe=MANY_STEPS):
                dropped = await device.until("dropped")
                await device.until("accepted", 3)
        assert dropped.text == (
            "the coordinator went back to version 1 (its state was restored); "
            "the task on version 2 is of no use"
        )
        assert versions_of(device, "accepted") == [0, 1, 1]

    asyncio.run(way())


def test_what_was_accepted_after_the_backup_is_trained_again_where_the_version_is_the_same(home, state):
    async def way():
        async with home.running() as device:
            async with home.coordinator(recipe=ONE_STEP, buffer_size=2):
                await device.until_told("for a version after 0")
            async with home.coordinator(recipe=ONE_STEP, buffer_size=2):  # only restarted: nothing to train
                await asyncio.sleep(0.5)
                assert len(device.of("spooled")) == 1
            shutil.rmtree(state.folder / "updates")
            with sqlite3.connect(state.folder / "journal.sqlite") as db:
                db.execute("DELETE FROM updates")
            async with home.coordinator(recipe=ONE_STEP, buffer_size=2):
                await device.until("accepted", 2)
        assert versions_of(device, "accepted") == [0, 0]
        assert [event.text for event in device.of("warning")] == [FORGOTTEN]

    asyncio.run(way())


def test_another_tier_of_the_same_version_is_no_other_version(home):
    async def way():
        settings = {"recipe": ONE_STEP, "ranks": (8, 4), "buffer_size": 100}
        async with home.coordinator(**settings):
            async with home.device(max_rank=4, max_tasks=1) as device:
                await device.client.run()
            async with home.running(max_rank=8) as device:
                await device.until_told("for a version after 0")
                assert not device.of("spooled")

    asyncio.run(way())


def test_a_download_of_what_nobody_has_any_more_is_left(home, state):
    async def way():
        async with home.coordinator(recipe=ONE_STEP):
            state.backup()
        async with home.coordinator(recipe=ONE_STEP, max_versions=1), home.running() as device:
            await until_fetching(device, 1)  # which is announced, and served by nobody any more
        assert device.state.memory.task.manifest.version == 1
        state.restore()
        async with home.coordinator(recipe=ONE_STEP), home.running(patience_s=60.0) as device:
            dropped = await device.until("dropped")
            await device.until("accepted")
        assert "went back to version 0 (its state was restored)" in dropped.text
        assert versions_of(device, "accepted")[0] == 0

    asyncio.run(way())


async def until_fetching(device, version):
    async with asyncio.timeout(60):
        while version not in (event.facts.get("version") for event in device.of("downloading")):
            device.told.clear()
            await device.told.wait()


def test_updates_that_the_restored_coordinator_does_not_know_are_rejected_and_forgotten(home, state):
    async def way():
        await grow(home, 1)
        state.backup()
        await grow(home, 2)
        (entry,) = (home.folder / "lamp" / "spool").iterdir()
        state.restore()
        async with home.coordinator(recipe=ONE_STEP), home.running() as device:
            await device.until("accepted", 2)
            (rejected,) = device.of("rejected")
        assert rejected.facts["reason"] == "unknown-version"
        assert "version 2 was never published from this state, 1 is current" in rejected.text
        assert not entry.exists()

    asyncio.run(way())


def test_a_version_made_again_after_a_restore_is_not_taken_for_the_one_before(home, state):
    """The same number, other bytes: attempts count anew, and an update of the other one is rejected."""

    async def way():
        await grow(home, 1)
        state.backup()
        await grow(home, 2)
        state.restore()
        home.broker = MemoryBroker()  # else what lamp has sent meanwhile comes first
        other = home.folder / "other.jsonl"
        other.write_text('{"prompt": "fan 1 off", "completion": " set(9, 0)"}\n')
        await grow(home, 2, "fan", data={"path": str(other)})
        async with home.coordinator(recipe=ONE_STEP, buffer_size=100), home.running() as device:
            await device.until("accepted")
        (rejected,) = device.of("rejected")
        assert rejected.facts["reason"] == "unknown-version"
        assert "version 2 is another one here than the update began from" in rejected.text
        assert versions_of(device, "accepted") == [2]

    asyncio.run(way())


def test_nobody_takes_a_device_back_with_an_old_manifest(home):
    """Not by an earlier session's, and not by an earlier one of the same, over a restart of the device."""

    async def way():
        kept = []
        for newest in (1, 3):
            async with MemoryTransport(home.broker, f"ear-{newest}") as ear:
                keeping = asyncio.create_task(keep(ear, kept, newest))
                await grow(home, newest)
                await keeping
        async with MemoryTransport(home.broker, "replayer") as replayer:
            for payload in reversed(kept):
                await replayer.publish(TOPICS.version("r4"), payload, retain=True)
        async with home.running(patience_s=0.05) as device:
            warning = await device.until("warning", 2)
            assert "was followed by" in warning.text
            assert not device.of("spooled")
            async with home.coordinator(recipe=ONE_STEP):
                await device.until("accepted", 2)
        assert versions_of(device, "accepted") == [3, 4]
        assert not device.of("dropped")

    asyncio.run(way())


async def keep(ear, kept, newest):
    """Keeps the first manifest of the session that will make `newest`."""
    await ear.subscribe(TOPICS.version("r4"))
    async for message in ear.messages():
        if newest == 1 or not message.retained:
            kept.append(message.payload)
            return
