import asyncio
import json
import os
import shutil
import signal
import sqlite3
from contextlib import closing

import msgspec
import numpy as np
import pytest

from converters.bases.read import read_base
from converters.errors import BaseModelError
from converters.formats.canonical import load_adapter
from coordinator.announcing import coordinator_presence
from edge.backends.toy import make_toy_base
from edge.device.task import Task
from edge.errors import ConfigError, DataError, DiskFull
from edge.protocol.messages import Receipt, Telemetry
from edge.protocol.signing import Keyring, Signer, new_key, public_key, read_signed
from edge.protocol.topics import Topics
from edge.storage.spool import Spool
from edge.transport.memory import MemoryBroker, MemoryTransport

TOPICS = Topics("home")


def updates(home):
    """What the coordinator's journal holds."""
    return sorted(journalled(home, "device, base_version, attempt"))


def journalled(home, columns):
    with closing(sqlite3.connect(home.folder / "coordinator" / "journal.sqlite")) as db:
        return db.execute(f"SELECT {columns} FROM updates").fetchall()


def kinds(device):
    """Kinds of events in order, without those that depend on timing."""
    return [event.kind for event in device.events if event.kind not in ("downloading", "training", "waiting")]


def test_a_device_trains_on_each_version_and_delivers_it(home):
    async def way():
        async with home.coordinator(), home.device(max_tasks=2) as device:
            await device.client.run()
        assert kinds(device) == ["joined", "spooled", "accepted", "spooled", "accepted", "stopped"]
        assert device.state.memory.version == 1
        assert device.state.memory.tokens_per_s > 0

    asyncio.run(way())
    assert updates(home) == [("lamp", 0, 0), ("lamp", 1, 0)]


def test_what_it_learnt_is_a_lower_loss(home):
    async def way():
        recipe = {"steps": 40, "lr": 0.02, "seq_tokens": 64, "batch_tokens": 128}
        async with home.coordinator(recipe=recipe), home.device(max_tasks=1) as device:
            await device.client.run()
        facts = device.of("spooled")[0].facts
        assert facts["loss_after"] < 0.9 * facts["loss_before"]

    asyncio.run(way())


def test_a_device_of_lower_rank_takes_the_largest_tier_that_fits(home):
    async def way():
        async with home.coordinator(ranks=(8, 4, 2)), home.device(max_tasks=1, max_rank=5) as device:
            await device.client.run()
        assert device.of("accepted")

    asyncio.run(way())
    assert journalled(home, "tier") == [("r4",)]


def test_a_device_too_small_for_every_tier_waits_and_says_so(home):
    async def way():
        async with home.coordinator(ranks=(8, 4)), home.running(max_rank=2, patience_s=0.02) as device:
            await device.until_told("for a tier of rank 2 or less; the fleet has 4, 8")

    asyncio.run(way())


def test_attempts_bound_the_tasks_on_one_version(home):
    async def way():
        recipe = {"steps": 1, "seq_tokens": 64, "batch_tokens": 128, "attempts": 2}
        async with home.coordinator(recipe=recipe, buffer_size=100), home.running() as device:
            await device.until("accepted", 2)
            await device.until_told("for a version after 0")

    asyncio.run(way())
    assert updates(home) == [("lamp", 0, 0), ("lamp", 0, 1)]


KEEPING = {
    "recipe": {"steps": 3, "lr": 0.02, "seq_tokens": 64, "batch_tokens": 128},
    "strategy": "fedsa-lora",
}


def test_a_device_that_keeps_its_own_b_sends_none_and_goes_on_with_it(home):
    async def way():
        async with home.coordinator(**KEEPING), home.device(max_tasks=3) as device:
            await device.client.run()
        return load_adapter(device.state.personal), [event.facts for event in device.of("spooled")]

    personal, spooled = asyncio.run(way())
    assert all(factors.b.any() for _, factors in personal)
    # Each version's b is 0, so the loss would begin anew every time.
    assert spooled[2]["loss_before"] < spooled[0]["loss_before"] - 0.01
    whole = sum(4 * factors.a.size + 4 * factors.b.size for _, factors in personal)
    assert all(facts["size_bytes"] < 0.8 * whole for facts in spooled)


class FullAtTheSecond(Spool):
    """Finds no room when the second update comes, and then some."""

    times = 0

    def add(self, *arguments, **settings):
        self.times += 1
        if self.times == 2:
            raise DiskFull("spool: no room for an update")
        super().add(*arguments, **settings)


def test_a_task_that_is_done_again_begins_with_the_same_b(home):
    async def way(spool):
        async with home.coordinator(**KEEPING), home.device(max_tasks=2, spool=spool) as device:
            await device.client.run()
        return device.events, load_adapter(device.state.personal)

    events, interrupted = asyncio.run(way(FullAtTheSecond))
    assert any("no room" in event.text for event in events)
    assert not any("from the beginning" in event.text for event in events)
    for name in ("lamp", "coordinator"):
        shutil.rmtree(home.folder / name)
    home.broker = MemoryBroker()
    _, plain = asyncio.run(way(Spool))
    assert interrupted == plain


def test_without_a_bound_training_goes_on_while_updates_travel(home):
    async def way():
        recipe = {"steps": 1, "seq_tokens": 64, "batch_tokens": 128, "attempts": 0}
        async with home.coordinator(recipe=recipe, buffer_size=100), home.device(max_tasks=5) as device:
            await device.client.run()

    asyncio.run(way())
    assert updates(home) == [("lamp", 0, attempt) for attempt in range(5)]


def test_every_attempt_has_data_in_another_order(home):
    async def way():
        recipe = {"steps": 1, "seq_tokens": 64, "batch_tokens": 64, "attempts": 0}
        async with home.coordinator(recipe=recipe, buffer_size=100), home.device(max_tasks=3) as device:
            await device.client.run()
        return {event.facts["loss_before"] for event in device.of("spooled")}

    assert len(asyncio.run(way())) > 1


def test_another_base_model_is_one_clear_error_that_names_both(home):
    async def way():
        other = make_toy_base(home.folder / "other", seed=1)
        async with home.coordinator(), home.device(base=str(other)) as device:
            with pytest.raises(BaseModelError) as caught:
                await device.client.run()
        for base in (home.base, other):
            assert read_base(base).fingerprint[:16] in str(caught.value)

    asyncio.run(way())


def test_a_version_that_is_too_large_is_one_clear_error_and_takes_no_room(home):
    async def scenario():
        async with home.coordinator(), home.device(max_download_bytes=1000) as lamp:
            with pytest.raises(
                ConfigError, match=r"has \d+ bytes, expected at most 1000; raise max_download"
            ):
                await lamp.client.run()
        assert not list(lamp.state.versions.iterdir())

    asyncio.run(scenario())


def test_bad_data_ends_the_client_with_line_and_reason_and_nothing_is_sent(home):
    home.data.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 1, "completion": "b"}\nnope\n')

    async def way():
        async with home.coordinator(), home.device() as device:
            with pytest.raises(DataError, match=r"2 of 3 rows.*\(line 2\).*is not JSON \(line 3\)"):
                await device.client.run()

    asyncio.run(way())
    assert updates(home) == []


def test_a_stopped_task_goes_on_from_its_checkpoint(home):
    recipe = {"steps": 30, "seq_tokens": 64, "batch_tokens": 128}

    async def way():
        async with home.coordinator(recipe=recipe, sealing="off"):
            async with home.running(slowdown=200.0) as device:
                await device.until("training", 3)
            assert kinds(device) == ["joined", "stopped"]
            reached = device.of("training")[-1].facts["done"]
            assert list((home.folder / "lamp" / "task").glob("0-0-r4-*/checkpoint*"))
            async with home.device(max_tasks=1) as again:
                await again.client.run()
            assert again.of("training")[0].facts["done"] > reached
            return again.of("spooled")[0].facts["update"]

    async def uninterrupted():
        home.folder = home.folder / "anew"
        home.broker = MemoryBroker()
        async with home.coordinator(recipe=recipe, sealing="off"), home.device(max_tasks=1) as device:
            await device.client.run()
        return device.of("spooled")[0].facts["update"]

    # The id holds the hash of the payload: unsealed, the same id is the same delta, bit for bit.
    assert asyncio.run(way()) == asyncio.run(uninterrupted())


def test_a_checkpoint_of_data_that_changed_meanwhile_is_dropped(home):
    async def way():
        recipe = {"steps": 10, "seq_tokens": 64, "batch_tokens": 128}
        async with home.coordinator(recipe=recipe):
            async with home.running(slowdown=200.0) as device:
                await device.until("training", 2)
            home.data.write_text('{"prompt": "fan", "completion": " off"}\n')
            async with home.device(max_tasks=1) as again:
                await again.client.run()
            assert "training from the beginning" in again.of("warning")[0].text

    asyncio.run(way())
    assert updates(home) == [("lamp", 0, 0)]


def test_a_version_that_is_no_longer_kept_is_given_up_for_the_newer_one(home, make_manifest):
    async def way():
        async with home.coordinator(), home.device(max_tasks=1, patience_s=0.1) as device:
            async with home.device("fan", max_tasks=1) as fan:
                await fan.client.run()
            while not any(line.startswith("version 1") for line in home.said):
                await asyncio.sleep(0.01)
            device.state.update(task=Task(make_manifest(base=device.state.memory.base), 0))
            await device.client.run()

    asyncio.run(way())
    assert updates(home) == [("fan", 0, 0), ("lamp", 1, 0)]


@pytest.mark.parametrize("encoding", ["f32", "f16", "int8", "int4"])
def test_what_an_encoding_leaves_over_is_kept_for_the_next_update(home, encoding):
    async def way():
        async with home.coordinator(encoding=encoding), home.device(max_tasks=2) as device:
            await device.client.run()

    asyncio.run(way())
    assert updates(home) == [("lamp", 0, 0), ("lamp", 1, 0)]
    left = load_adapter(home.folder / "lamp" / "residual.safetensors")
    size = max(np.abs(factors.b).max() for _, factors in left)
    assert size == 0 if encoding == "f32" else size > 0


def test_a_newer_version_does_not_interrupt_the_task(home):
    async def way():
        recipe = {"steps": 20, "seq_tokens": 64, "batch_tokens": 128}
        async with home.coordinator(recipe=recipe), home.running(slowdown=100.0) as slow:
            await slow.until("training")
            async with home.device("fan", max_tasks=2) as fast:
                await fast.client.run()
            await slow.until("accepted")
            assert slow.of("accepted")[0].facts["base_version"] == 0

    asyncio.run(way())
    assert ("lamp", 0, 0) in updates(home)


def test_a_rejected_update_is_told_once_and_the_device_goes_on(home):
    async def way():
        recipe = {"steps": 20, "seq_tokens": 64, "batch_tokens": 128}
        async with home.coordinator(recipe=recipe, max_staleness=0), home.running(slowdown=120.0) as slow:
            await slow.until("training")
            async with home.device("fan", max_tasks=1) as fast:
                await fast.client.run()
            rejected = await slow.until("rejected")
            assert rejected.facts["reason"] == "too-stale"
            await slow.until("accepted")
            assert len(slow.of("rejected")) == 1
            assert slow.of("accepted")[0].facts["base_version"] == 1

    asyncio.run(way())


def test_a_device_that_is_not_listed_waits_and_goes_on_once_it_is(home):
    async def way():
        closed = {"enrolment": "closed"}
        async with home.running() as device:
            async with home.coordinator(**closed, devices={"fan": public_key(new_key())}):
                await device.until("downloading", 3)
                assert not device.of("spooled")
            async with home.coordinator(**closed, devices={"lamp": device.state.signer.key}):
                await device.until("accepted")

    asyncio.run(way())


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_counted_twice_on_a_wire_that_loses_repeats_and_reorders(home, seed):
    home.broker = MemoryBroker(seed, loss=0.1, repeat=0.2, reorder=0.3)

    async def way():
        lossy = {"patience_s": 0.1, "max_tasks": 3}
        recipe = {"steps": 1, "seq_tokens": 64, "batch_tokens": 128, "attempts": 0}
        lamp, fan = home.device("lamp", **lossy), home.device("fan", **lossy)
        async with home.coordinator(recipe=recipe, buffer_size=100), lamp as one, fan as other:
            await asyncio.gather(one.client.run(), other.client.run())

    asyncio.run(way())
    assert updates(home) == [(device, 0, attempt) for device in ("fan", "lamp") for attempt in range(3)]


def test_a_killed_coordinator_is_waited_for_and_counts_once(home):
    async def way():
        recipe = {"steps": 2, "seq_tokens": 64, "batch_tokens": 128}
        async with home.running() as device:
            async with home.coordinator(recipe=recipe):
                await device.until("accepted")
            told = len(device.of("accepted"))
            async with home.coordinator(recipe=recipe):
                await device.until("accepted", told + 1)

    asyncio.run(way())
    rows = updates(home)
    assert len(rows) == len(set(rows)) >= 2


def test_a_killed_worker_is_started_again(home):
    async def way():
        recipe = {"steps": 20, "seq_tokens": 64, "batch_tokens": 128}
        async with home.coordinator(recipe=recipe), home.running(slowdown=100.0) as device:
            await device.until("training", 2)
            os.kill(device.worker.pid, signal.SIGABRT)
            await device.until("accepted")
            assert "last checkpoint" in device.of("warning")[0].text

    asyncio.run(way())


def test_telemetry_tells_the_progress(home):
    async def way():
        watcher = MemoryTransport(home.broker, "watcher")
        async with home.coordinator(), watcher, home.device(max_tasks=1) as device:
            await watcher.subscribe(TOPICS.device("+", "telemetry"))
            await device.client.run()
            message = await anext(watcher.messages())
        telemetry = Keyring().open(message.topic, read_signed(message.payload), Telemetry).record
        assert (telemetry.base_version, telemetry.steps) == (0, 3)

    asyncio.run(way())


def test_a_forged_manifest_or_receipt_is_ignored(home, make_manifest):
    async def way():
        forger, key = MemoryTransport(home.broker, "forger"), new_key()
        recipe = {"steps": 1, "seq_tokens": 64, "batch_tokens": 128}
        async with home.coordinator(recipe=recipe), forger, home.running() as device:
            spooled = await device.until("accepted")
            manifest = make_manifest(version=1000, base="1" * 64)
            receipt = Receipt(
                update=spooled.facts["update"], header="0" * 64, status="rejected", reason="foreign-base"
            )
            signer = Signer(key, 2**50)
            for topic, record in (
                (TOPICS.version("r4"), manifest),
                (TOPICS.device("lamp", "receipt"), receipt),
            ):
                await forger.publish(topic, signer.seal(topic, record))
            await forger.publish(TOPICS.device("lamp", "receipt"), b"\xff{")
            await device.until("warning", 3)
            assert all(event.text.startswith("tunefleet/v2/home/") for event in device.of("warning"))
            before = len(device.of("accepted"))
            await device.until("accepted", before + 1)

    asyncio.run(way())


def test_the_first_coordinator_key_is_pinned_over_restarts(home):
    async def way():
        async with home.coordinator(), home.device(max_tasks=1) as device:
            await device.client.run()
        pinned = device.state.memory.coordinator_key
        assert json.loads((home.folder / "lamp" / "state.json").read_text())["coordinator_key"] == pinned
        home.broker = MemoryBroker()
        async with home.coordinator(state=str(home.folder / "impostor")), home.running() as again:
            assert pinned in (await again.until("warning")).text
            assert not again.of("spooled")

    asyncio.run(way())


def test_leaving_says_offline(home):
    async def way():
        watcher = MemoryTransport(home.broker, "watcher", coordinator_presence("other", Signer(new_key(), 1)))
        async with watcher:
            await watcher.subscribe(TOPICS.device("lamp", "state"))
            async with home.running() as device:
                await device.until("joined")
            messages = watcher.messages()
            told = [msgspec.json.decode((await anext(messages)).payload)["body"]["online"] for _ in range(2)]
        assert told == [True, False]

    asyncio.run(way())
