"""From a buffer to the next version, and what keeps an update from being in one."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from coordinator.strategies.contract import Contribution, State
from coordinator.strategies.papers import fedbuff
from coordinator.strategies.pipeline import Pipeline
from edge.errors import BackendError


def test_a_full_buffer_becomes_the_version_that_fedbuff_says(fleet):
    async def scenario():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(fleet.serving())
            devices = [await stack.enter_async_context(fleet.device(name).joined()) for name in ("x", "y")]
            first = await devices[0].download(await devices[0].manifest())
            deltas = []
            for seed, device in enumerate(devices):
                receipt, delta = await device.teach(seed)
                assert receipt.status == "accepted"
                deltas.append(delta)
            manifest = await devices[0].manifest(version=1)
            merged = await devices[0].download(manifest)
            buffer = [Contribution("", "", 0, 0, 10, lambda d=d: d, lambda: first) for d in deltas]
            expected, _ = Pipeline("fedbuff", fedbuff.METHOD, 2).merge(State(0, first), buffer)
            assert merged == expected.adapter
            assert (manifest.parent, manifest.rank, manifest.space) == (0, 4, "product")

    asyncio.run(scenario())


def test_a_device_of_lower_rank_takes_part(fleet):
    async def scenario():
        async with fleet.serving(buffer_size=1), fleet.device("x").joined() as x:
            receipt, _ = await x.teach(seed=1, tier="r2")
            assert receipt.status == "accepted"
            low = await x.download(await x.manifest(version=1, tier="r2"))
            high = await x.download(await x.manifest(version=1, tier="r4"))
            for name, f in high:
                other = low.modules[name]
                assert other.b @ other.a == pytest.approx(f.b @ f.a, abs=1e-5)  # what was taught has rank 2

    asyncio.run(scenario())


def test_the_time_budget_merges_what_is_there(fleet):
    async def scenario():
        async with fleet.serving(buffer_size=9, time_budget_s=60), fleet.device("x").joined() as x:
            await x.teach(seed=1)
            fleet.now += 61
            await x.manifest(version=1)

    asyncio.run(scenario())


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_is_set_by_a_day_neither_stops_a_merge_nor_hurries_it(fleet, days):
    async def scenario():
        async with fleet.serving(buffer_size=9, time_budget_s=60), fleet.device("x").joined() as x:
            await x.teach(seed=1)
            await asyncio.sleep(0.1)  # it has been seen waiting
            fleet.set_by_s = days * 86_400.0
            fleet.now += 30
            await asyncio.sleep(0.2)
            assert x.manifests["r4"].version == 0
            fleet.now += 31
            await x.manifest(version=1)

    asyncio.run(scenario())


def test_what_waits_over_a_restart_waits_no_longer_than_its_budget_when_the_clock_went_back(fleet):
    async def scenario():
        settings = {"buffer_size": 9, "time_budget_s": 60}
        async with fleet.device("x").joined() as x:
            async with fleet.serving(**settings):
                await x.teach(seed=1)
            fleet.set_by_s = -86_400.0
            async with fleet.serving(**settings):
                await asyncio.sleep(0.2)
                fleet.now += 61
                await x.manifest(version=1)

    asyncio.run(scenario())


def test_a_rollback_by_another_process_is_announced_and_its_versions_are_no_base_any_more(fleet):
    async def scenario():
        async with fleet.serving(buffer_size=1), fleet.device("x").joined() as x:
            first = await x.download(await x.manifest())
            await x.teach(seed=1)
            await x.manifest(version=1)
            with_one = await x.prepare(version=1)
            with fleet.opened() as (_, versions):
                versions.rollback(0, 0.0)
            manifest = await x.manifest(version=2)
            assert (manifest.parent, await x.download(manifest)) == (0, first)
            receipt = await x.upload(*with_one)
            assert (receipt.status, receipt.reason) == ("rejected", "rolled-back")
            assert (await x.teach(seed=2, version=2))[0].status == "accepted"
            await x.manifest(version=3)

    asyncio.run(scenario())


async def until_discarded(fleet, count):
    """The updates that left the buffer, oldest first, once they are so many."""
    async with asyncio.timeout(10):
        while True:
            with fleet.opened() as (journal, _):
                gone = [one for one in journal.updates() if one.status == "discarded"][::-1]
            if len(gone) >= count:
                return gone
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("settings", "size", "examples", "detail"),
    [
        ({"strategy": "fedavg"}, 0.5, 0, "the weights of all 2 updates are zero"),
        ({"space": "factors", "server_lr": 1e38}, 30.0, 10, "finite"),
    ],
    ids=["no weight", "overflow"],
)
def test_what_cannot_be_merged_leaves_the_buffer_and_the_version_stays(
    fleet, settings, size, examples, detail
):
    async def scenario():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(fleet.serving(**settings))
            devices = [await stack.enter_async_context(fleet.device(name).joined()) for name in ("x", "y")]
            first = await devices[0].manifest()
            for device in devices:
                header, payload = await device.prepare(size=size, num_examples=examples)
                assert (await device.upload(header, payload)).status == "accepted"
            gone = await until_discarded(fleet, 2)
            assert [(one.device, one.reason) for one in gone] == [("x", "unmergeable"), ("y", "unmergeable")]
            assert detail in gone[0].detail
            assert not list((fleet.folder / "updates").iterdir())
            for device in devices:  # the loop goes on with the same files
                assert (await device.manifest(version=1)).sha256 == first.sha256
                header, payload = await device.prepare(size=0.01, version=1)
                assert (await device.upload(header, payload)).status == "accepted"
            if "server_lr" not in settings:
                await devices[0].manifest(version=2)

    asyncio.run(scenario())


def test_an_update_whose_version_is_gone_from_the_disk_leaves_the_buffer_alone(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x, fleet.device("y").joined() as y:
            low = await y.prepare(tier="r2")
            for attempt in (1, 2):
                await x.teach(seed=attempt, attempt=attempt)
            await x.manifest(version=1)
            (fleet.folder / "objects" / (await low_sha(fleet))).unlink()
            await y.upload(*low)
            await x.teach(seed=3, version=1, attempt=1)
            (gone,) = await until_discarded(fleet, 1)
            assert (gone.device, gone.reason) == ("y", "unmergeable")
            assert "version 0, which it began from, is gone or damaged" in gone.detail
            assert "\n" not in gone.detail
            await x.teach(seed=4, version=1, attempt=2)
            await x.manifest(version=2)
        with fleet.opened() as (journal, _):
            assert {one.device for one in journal.updates() if one.merged_into == 2} == {"x"}

    async def low_sha(fleet):
        with fleet.opened() as (_, versions):
            return versions.version(0).tiers["r2"]

    asyncio.run(scenario())


@pytest.mark.parametrize("content", [None, b"damaged"])
def test_an_update_whose_payload_is_gone_from_the_disk_leaves_the_buffer_alone(fleet, content):
    async def scenario():
        async with fleet.serving(limits={"small_bytes": 0}), fleet.device("x").joined() as x:
            await x.teach(seed=1, attempt=1)
            (payload,) = (fleet.folder / "updates").iterdir()
            if content is None:
                payload.unlink()
            else:
                payload.write_bytes(content)
            await x.teach(seed=2, attempt=2)
            (gone,) = await until_discarded(fleet, 1)
            assert (gone.attempt, gone.reason) == (1, "unmergeable")
            assert "its payload is gone or damaged" in gone.detail
            await x.teach(seed=3, attempt=3)
            await x.manifest(version=1)

    asyncio.run(scenario())


def test_a_calibration_set_that_cannot_be_read_for_once_loses_no_update(fleet, tmp_path):
    (tmp_path / "c.jsonl").write_text("")

    class Forgetful:
        """Runs out of memory the second time it is asked: the first is at the start."""

        times = 0

        def loss(self, adapter):
            self.times += 1
            if self.times == 2:
                raise BackendError("no memory left")
            return 1.0

    async def scenario():
        settings = {
            "strategy": "fedbuff",
            "stages": {"guard": "backtrack"},
            "calibration_data": str(tmp_path / "c.jsonl"),
        }
        async with (
            fleet.serving(buffer_size=1, calibrator=Forgetful(), **settings),
            fleet.device("x").joined() as x,
        ):
            await x.teach(seed=1)
            await x.manifest(version=1)
        assert "no memory left" in fleet.said

    asyncio.run(scenario())
