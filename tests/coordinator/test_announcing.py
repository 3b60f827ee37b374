"""What devices are told that there is."""

import asyncio

import numpy as np

from converters.bases.read import read_base
from converters.proof.sample import make_sample
from coordinator.observers.status import fleet_status
from coordinator.routing import AGAIN_S
from edge.protocol.messages import Telemetry, Want
from edge.transport.memory import MemoryTransport


def test_the_first_version_changes_nothing_and_every_tier_holds_its_part(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            whole = await x.download(await x.manifest(tier="r4"))
            part = await x.download(await x.manifest(tier="r2"))
            for name, factors in whole:
                assert not factors.b.any()
                assert np.array_equal(factors.a[:2], part.modules[name].a)

    asyncio.run(scenario())


def test_versions_are_announced_again_where_a_broker_forgot_them(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            await x.manifest()
            x.manifests.clear()
            fleet.now += 61
            await x.manifest()

    asyncio.run(scenario())


def test_what_the_strategy_asks_of_devices_is_in_the_manifest(fleet):
    async def scenario():
        settings = {"strategy": "alignfed-literal", "stages": {"order": ["group", "centre-literal"]}}
        async with fleet.serving(**settings), fleet.device("x").joined() as x:
            manifest = await x.manifest()
            assert (manifest.recipe.pull, manifest.recipe.trains, manifest.space) == (0.1, "both", "factors")

    asyncio.run(scenario())


def test_a_versions_chunks_are_published_once_for_all_that_ask_at_the_time(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x, fleet.device("y").joined() as y:
            manifest = await x.manifest()
            total = -(-manifest.size_bytes // manifest.chunk_bytes)
            want = Want(sha256=manifest.sha256, ranges=((0, total),), window=16)
            for device in (x, y):
                await device.transport.subscribe(device.topics.blob(manifest.sha256))
            for device in (x, y):
                await device.say("want", want)
            for device in (x, y):
                await device.until(lambda d=device: len(d.chunks.get(manifest.sha256, {})) == min(total, 16))
            await asyncio.sleep(0.1)
            assert (x.num_chunks_seen, y.num_chunks_seen) == (min(total, 16), min(total, 16))

    asyncio.run(scenario())


def test_the_sample_of_the_base_model_is_served_and_outlives_the_versions(fleet):
    async def scenario():
        async with (
            fleet.serving(keep_versions=1, max_staleness=0, buffer_size=1),
            fleet.device("x").joined() as x,
        ):
            for version in range(3):
                await x.teach(seed=version, version=version)
            manifest = await x.manifest(3)
            total = -(-manifest.sketch.size_bytes // manifest.chunk_bytes)
            await x.transport.subscribe(x.topics.blob(manifest.sketch.sha256))
            want = Want(sha256=manifest.sketch.sha256, ranges=((0, total),), window=16)
            await x.say("want", want)
            chunks = x.chunks.setdefault(manifest.sketch.sha256, {})
            await x.until(lambda: len(chunks) == min(total, 16))
            sample = make_sample(read_base(fleet.base))
            assert all(chunk == sample[n * 1024 : (n + 1) * 1024] for n, chunk in chunks.items())

    asyncio.run(scenario())


def test_who_asks_for_what_is_not_here_is_told_what_there_is_and_shows_in_status(fleet):
    """Devices that were at a version before a restore; however often they ask, announcing has its measure."""

    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            manifest = await x.manifest()
            lost = Want(sha256="0" * 64, ranges=((0, 1),), window=16)
            heard = []
            async with MemoryTransport(fleet.broker, "ear") as ear:
                await ear.subscribe(x.topics.version("r4"))
                counting = asyncio.create_task(count(ear, heard))
                for _ in range(20):
                    await x.say("want", lost)
                fleet.now += AGAIN_S
                for _ in range(20):
                    await x.say("want", lost)
                await x.until(lambda: any("which is not here" in text for text in fleet.said))
                await asyncio.sleep(0.3)
                assert len(heard) == 1
                assert astray_of(fleet) == fleet.now
                known = Want(sha256=manifest.sha256, ranges=((0, 1),), window=16)
                await x.say("want", known)
                await asyncio.sleep(0.5)
                assert astray_of(fleet) is None
                progress = Telemetry(
                    base_version=72, step=1, steps=2, loss=1.0, tokens_per_s=1.0, memory_bytes=1
                )
                await x.say("telemetry", progress)
                await asyncio.sleep(0.5)
                assert astray_of(fleet) == fleet.now
                counting.cancel()

    asyncio.run(scenario())


async def count(ear, heard):
    async for message in ear.messages():
        if not message.retained:
            heard.append(message.payload)


def astray_of(fleet):
    with fleet.opened() as (journal, versions):
        return fleet_status(journal, versions, fleet.now).devices[0].astray
