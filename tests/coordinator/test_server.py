import asyncio
import resource
from contextlib import AsyncExitStack, contextmanager

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from converters.bases.read import read_base
from converters.proof.sample import make_sample
from coordinator.observers.status import fleet_status
from coordinator.routing import AGAIN_S
from coordinator.scoring import Quality
from coordinator.strategies import fedbuff
from coordinator.strategies.contract import Contribution, State
from coordinator.strategies.pipeline import Pipeline
from edge.errors import BackendError
from edge.protocol.codec import encode_adapter
from edge.protocol.messages import Presence, Telemetry, Want, encode_message
from edge.protocol.signing import new_key
from edge.transport.memory import MemoryBroker, MemoryTransport


def run(scenario):
    asyncio.run(scenario)


def delta_of(like, size):
    return LoraAdapter(
        {name: Factors(np.full_like(f.a, size), np.full_like(f.b, size), f.scale) for name, f in like}
    )


async def prepared(device, size=0.5, version=0, tier="r4", **changes):
    """A header and a payload that fit the current version."""
    manifest = await device.manifest(version, tier)
    delta = delta_of(await device.download(manifest), size)
    payload = encode_adapter(delta, "f32")
    return device.header(manifest, payload, **changes), payload, delta


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
            expected, _ = Pipeline("fedbuff", fedbuff.STAGES, 2).merge(State(0, first), buffer)
            assert merged == expected.adapter
            assert (manifest.parent, manifest.rank, manifest.space) == (0, 4, "product")

    run(scenario())


def test_the_first_version_changes_nothing_and_every_tier_holds_its_part(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            whole = await x.download(await x.manifest(tier="r4"))
            part = await x.download(await x.manifest(tier="r2"))
            for name, factors in whole:
                assert not factors.b.any()
                assert np.array_equal(factors.a[:2], part.modules[name].a)

    run(scenario())


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

    run(scenario())


@pytest.mark.parametrize("again", ["header", "header and chunks"])
def test_a_repeated_update_counts_once(fleet, again):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            header, payload, _ = await prepared(x)
            assert (await x.upload(header, payload)).status == "accepted"
            await x.send_header(header)
            if again == "header and chunks":
                await x.send_chunks(header, payload)
            assert (await x.receipt(header.update, count=2)).status == "accepted"
            with fleet.opened() as (journal, _):
                assert len(journal.waiting()) == 1

    run(scenario())


def test_a_rejected_update_is_rejected_again_for_the_same_reason(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            header, _, _ = await prepared(x, base="0" * 64)
            await x.send_header(header)
            first = await x.receipt(header.update)
            await x.send_header(header)
            assert first.reason == "foreign-base"
            assert await x.receipt(header.update, count=2) == first

    run(scenario())


def test_a_repeated_header_is_told_what_is_missing(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            header, payload, _ = await prepared(x)
            await x.send_header(header)
            await x.send_chunks(header, payload, range(1, 2))
            await x.send_header(header)
            receipt = await x.receipt(header.update)
            total = -(-len(payload) // header.chunk_bytes)
            assert (receipt.status, receipt.missing) == ("missing", ((0, 1), (2, total)))
            await x.send_chunks(header, payload)
            assert (await x.receipt(header.update, count=2)).status == "accepted"

    run(scenario())


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_restart_goes_on_where_it_stopped(fleet, is_killed):
    async def scenario():
        async with fleet.device("x").joined() as x, fleet.device("y").joined() as y:
            half = None
            try:
                async with fleet.serving(epoch=1):
                    await x.teach(seed=1)
                    half = await prepared(y)
                    await y.send_header(half[0])
                    await y.send_chunks(half[0], half[1], range(2))
                    await y.send_header(half[0])
                    await y.receipt(half[0].update)
                    if is_killed:
                        raise InterruptedError
            except InterruptedError:
                fleet.broker.kill("coordinator")
            header, payload, _ = half
            async with fleet.serving(epoch=2):
                await y.send_header(header)
                receipt = await y.receipt(header.update, count=2)
                assert receipt.missing == ((2, -(-len(payload) // header.chunk_bytes)),)
                await y.send_chunks(header, payload, range(2, 100))
                assert (await y.receipt(header.update, count=3)).status == "accepted"
                await x.manifest(version=1)
        with fleet.opened() as (journal, _):
            assert [update.merged_into for update in journal.updates()] == [1, 1]

    run(scenario())


def test_what_is_whole_at_the_start_is_admitted_without_its_device(fleet):
    async def scenario():
        async with fleet.device("x").joined() as x:
            async with fleet.serving():
                header, payload, _ = await prepared(x)
                await x.send_header(header)
                await x.send_chunks(header, payload, range(1))
                await x.send_header(header)
                await x.receipt(header.update)
            (part,) = (fleet.folder / "incoming").glob("*.part")
            part.write_bytes(payload)  # as when killed just after the last chunk
            async with fleet.serving(epoch=2):
                assert (await x.receipt(header.update, count=2)).status == "accepted"

    run(scenario())


def test_nothing_is_counted_twice_or_lost_over_a_bad_network(fleet):
    fleet.broker = MemoryBroker(3, loss=0.1, repeat=0.2, reorder=0.3)

    async def deliver(device, attempt):
        async def once():
            header, payload, _ = await prepared(device, attempt=attempt)
            while True:
                await device.send_header(header)
                await device.send_chunks(header, payload)
                await asyncio.sleep(0.05)
                final = [r for r in device.receipts if r.update == header.update and r.status != "missing"]
                if final:
                    return final[0].status

        while True:  # a lost chunk of the download is asked for again
            try:
                async with asyncio.timeout(1):
                    return await once()
            except TimeoutError:
                continue

    async def scenario():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(fleet.serving(buffer_size=100))
            devices = [await stack.enter_async_context(fleet.device(name).joined()) for name in "xyz"]
            found = await asyncio.gather(*(deliver(device, n) for device in devices for n in range(3)))
            assert found == ["accepted"] * 9
        with fleet.opened() as (journal, _):
            assert len(journal.waiting()) == 9

    run(scenario())


def test_a_versions_chunks_are_published_once_for_all_that_ask_at_the_time(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x, fleet.device("y").joined() as y:
            manifest = await x.manifest()
            total = -(-manifest.size_bytes // manifest.chunk_bytes)
            want = encode_message(Want(sha256=manifest.sha256, ranges=((0, total),), window=16))
            for device in (x, y):
                await device.transport.subscribe(device.topics.blob(manifest.sha256))
            for device in (x, y):
                await device.transport.publish(device.topics.device(device.device_id, "want"), want)
            for device in (x, y):
                await device.until(lambda d=device: len(d.chunks.get(manifest.sha256, {})) == min(total, 16))
            await asyncio.sleep(0.1)
            assert (x.num_chunks_seen, y.num_chunks_seen) == (min(total, 16), min(total, 16))

    run(scenario())


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
            await x.transport.publish(x.topics.device("x", "want"), encode_message(want))
            chunks = x.chunks.setdefault(manifest.sketch.sha256, {})
            await x.until(lambda: len(chunks) == min(total, 16))
            sample = make_sample(read_base(fleet.base))
            assert all(chunk == sample[n * 1024 : (n + 1) * 1024] for n, chunk in chunks.items())

    run(scenario())


def test_hostile_messages_stop_nothing(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            root = x.topics.root
            junk = [b"", b"\xff\xfe", b"{}", b"[" * 10_000, b'{"body":1}', b"null"]
            for topic in ("hello", "state", "want", "telemetry", "up/no-id/header", f"up/{'a' * 32}/header",
                          f"up/{'a' * 32}/0", f"up/{'a' * 32}/-1",
                          f"up/{'a' * 32}/x", f"up/{'a' * 32}/{'9' * 5000}", "up/../header"):  # fmt: skip
                for payload in junk:
                    await x.transport.publish(f"{root}/device/x/{topic}", payload)
                    await x.transport.publish(f"{root}/device/NOT AN ID/{topic}", payload)
            huge = Want(sha256="0" * 64, ranges=((0, 2**53),), window=16)
            manifest = await x.manifest()
            for want in (huge, Want(sha256=manifest.sha256, ranges=((0, 2**53),) * 100, window=16)):
                await x.transport.publish(f"{root}/device/x/want", encode_message(want))
            assert (await x.teach(seed=1))[0].status == "accepted"

    run(scenario())


def test_a_stranger_can_neither_spoil_nor_receipt_anothers_update(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            header, payload, _ = await prepared(x)
            await x.send_header(header)
            await x.send_header(header, key=new_key())
            await x.send_chunks(header, payload)
            assert (await x.receipt(header.update)).status == "accepted"
            await x.send_header(header, key=new_key())
            await x.send_header(header)
            assert (await x.receipt(header.update, count=2)).status == "accepted"
        with fleet.opened() as (journal, _):
            assert [refusal.reason for refusal in journal.refusals()] == ["unknown-device"] * 2

    run(scenario())


def test_a_device_that_is_not_listed_is_told_so(fleet):
    async def scenario():
        async with (
            fleet.serving(enrolment="closed", devices={"y": "0" * 64}),
            fleet.device("x").joined() as x,
        ):
            receipt, _ = await x.teach(seed=1)
            assert (receipt.status, receipt.reason) == ("rejected", "unknown-device")

    run(scenario())


def test_a_corrupt_payload_is_rejected_and_gone(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            header, payload, _ = await prepared(x)
            receipt = await x.upload(header, payload[:-1] + bytes([payload[-1] ^ 1]))
            assert (receipt.status, receipt.reason) == ("rejected", "hash-mismatch")
            assert not list((fleet.folder / "updates").iterdir())
            assert not list((fleet.folder / "incoming").iterdir())

    run(scenario())


def test_a_rollback_by_another_process_is_announced_and_its_versions_are_no_base_any_more(fleet):
    async def scenario():
        async with fleet.serving(buffer_size=1), fleet.device("x").joined() as x:
            first = await x.download(await x.manifest())
            await x.teach(seed=1)
            await x.manifest(version=1)
            with_one = await prepared(x, version=1)
            with fleet.opened() as (_, versions):
                versions.rollback(0, 0.0)
            manifest = await x.manifest(version=2)
            assert (manifest.parent, await x.download(manifest)) == (0, first)
            receipt = await x.upload(with_one[0], with_one[1])
            assert (receipt.status, receipt.reason) == ("rejected", "rolled-back")
            assert (await x.teach(seed=2, version=2))[0].status == "accepted"
            await x.manifest(version=3)

    run(scenario())


def test_the_time_budget_merges_what_is_there(fleet):
    async def scenario():
        async with fleet.serving(buffer_size=9, time_budget_s=60), fleet.device("x").joined() as x:
            await x.teach(seed=1)
            fleet.now += 61
            await x.manifest(version=1)

    run(scenario())


def test_it_ends_when_the_last_version_is_made_and_scored(fleet):
    scored = []

    def score(adapter):
        scored.append(adapter)
        return Quality(1.5, 0.25)

    async def scenario():
        async with fleet.serving(buffer_size=1, max_versions=1, score=score) as coordinator:
            async with fleet.device("x").joined() as x:
                await x.teach(seed=1)
                await x.manifest(version=1)
                while not any("stopped" in line for line in fleet.said):
                    await asyncio.sleep(0.01)
            assert len(scored) == 2
            assert coordinator.__class__
        with fleet.opened() as (_, versions):
            assert [(v.loss, v.exact) for v in versions.history()] == [(1.5, 0.25)] * 2

    run(scenario())


def test_a_late_will_of_an_old_session_is_ignored(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            topic = x.topics.device("x", "state")
            await x.manifest()
            for online, epoch in ((True, 5), (False, 4)):
                await x.transport.publish(topic, encode_message(Presence(online=online, epoch=epoch)))
            await x.teach(seed=1)
        with fleet.opened() as (journal, _):
            assert [(one.online, one.epoch) for one in journal.devices()] == [(True, 5)]

    run(scenario())


@contextmanager
def files_of_at_most(size_bytes):
    """As on a full disk: no file of this process grows beyond that size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("what", ["everything", "the journal"])
def test_with_a_full_disk_nothing_is_receipted_and_nothing_is_lost(fleet, what):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            header, payload, _ = await prepared(x)
            await x.send_header(header)
            await x.send_header(header)
            await x.receipt(header.update)
            wal = (fleet.folder / "journal.sqlite-wal").stat().st_size
            assert wal > 2 * len(payload)
            with files_of_at_most(1 if what == "everything" else wal):
                await x.send_chunks(header, payload)
                await asyncio.sleep(0.2)
                assert [receipt.status for receipt in x.receipts] == ["missing"]
                told = [line for line in fleet.said if "nothing is receipted" in line]
                assert len(told) == (1 if what == "the journal" else len(told))
            await x.send_header(header)
            if what == "everything":
                await x.receipt(header.update, count=2)
                await x.send_chunks(header, payload)
            final = await x.receipt(header.update, count=3 if what == "everything" else 2)
            assert final.status == "accepted"

    run(scenario())


def test_versions_are_announced_again_where_a_broker_forgot_them(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            await x.manifest()
            x.manifests.clear()
            fleet.now += 61
            await x.manifest()

    run(scenario())


def test_a_version_that_cannot_be_scored_stops_nothing(fleet):
    def score(adapter):
        raise BackendError("no memory left")

    async def scenario():
        async with fleet.serving(buffer_size=1, score=score), fleet.device("x").joined() as x:
            await x.teach(seed=1)
            await x.manifest(version=1)
        assert "version 0 is not scored: no memory left" in fleet.said

    run(scenario())


def test_what_the_strategy_asks_of_devices_is_in_the_manifest(fleet):
    async def scenario():
        settings = {"strategy": "alignfed-literal", "stages": {"order": ["group", "centre-literal"]}}
        async with fleet.serving(**settings), fleet.device("x").joined() as x:
            manifest = await x.manifest()
            assert (manifest.recipe.pull, manifest.recipe.trains, manifest.space) == (0.1, "both", "factors")

    run(scenario())


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
                header, payload, _ = await prepared(device, size=size, num_examples=examples)
                assert (await device.upload(header, payload)).status == "accepted"
            gone = await until_discarded(fleet, 2)
            assert [(one.device, one.reason) for one in gone] == [("x", "unmergeable"), ("y", "unmergeable")]
            assert detail in gone[0].detail
            assert not list((fleet.folder / "updates").iterdir())
            for device in devices:  # the loop goes on with the same files
                assert (await device.manifest(version=1)).sha256 == first.sha256
                header, payload, _ = await prepared(device, size=0.01, version=1)
                assert (await device.upload(header, payload)).status == "accepted"
            if "server_lr" not in settings:
                await devices[0].manifest(version=2)

    run(scenario())


def test_an_update_whose_version_is_gone_from_the_disk_leaves_the_buffer_alone(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x, fleet.device("y").joined() as y:
            low = await prepared(y, tier="r2")
            for attempt in (1, 2):
                await x.teach(seed=attempt, attempt=attempt)
            await x.manifest(version=1)
            (fleet.folder / "objects" / (await low_sha(fleet))).unlink()
            await y.upload(*low[:2])
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

    run(scenario())


@pytest.mark.parametrize("content", [None, b"damaged"])
def test_an_update_whose_payload_is_gone_from_the_disk_leaves_the_buffer_alone(fleet, content):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
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

    run(scenario())


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
            fleet.serving(buffer_size=1, calibrator=Forgetful(), retry_s=0.05, **settings),
            fleet.device("x").joined() as x,
        ):
            await x.teach(seed=1)
            await x.manifest(version=1)
        assert "no memory left" in fleet.said

    run(scenario())


def test_who_asks_for_what_is_not_here_is_told_what_there_is_and_shows_in_status(fleet):
    """Devices that were at a version before a restore; however often they ask, announcing has its measure."""

    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            manifest = await x.manifest()
            topic = x.topics.device("x", "want")
            lost = encode_message(Want(sha256="0" * 64, ranges=((0, 1),), window=16))
            heard = []
            async with MemoryTransport(fleet.broker, "ear") as ear:
                await ear.subscribe(x.topics.version("r4"))
                counting = asyncio.create_task(count(ear, heard))
                for _ in range(20):
                    await x.transport.publish(topic, lost)
                fleet.now += AGAIN_S
                for _ in range(20):
                    await x.transport.publish(topic, lost)
                await x.until(lambda: any("which is not here" in text for text in fleet.said))
                await asyncio.sleep(0.3)
                assert len(heard) == 1
                assert astray_of(fleet) == fleet.now
                known = Want(sha256=manifest.sha256, ranges=((0, 1),), window=16)
                await x.transport.publish(topic, encode_message(known))
                await asyncio.sleep(0.5)
                assert astray_of(fleet) is None
                progress = Telemetry(
                    base_version=72, step=1, steps=2, loss=1.0, tokens_per_s=1.0, memory_bytes=1
                )
                await x.transport.publish(x.topics.device("x", "telemetry"), encode_message(progress))
                await asyncio.sleep(0.5)
                assert astray_of(fleet) == fleet.now
                counting.cancel()

    run(scenario())


async def count(ear, heard):
    async for message in ear.messages():
        if not message.retained:
            heard.append(message.payload)


def astray_of(fleet):
    with fleet.opened() as (journal, versions):
        return fleet_status(journal, versions, fleet.now).devices[0].astray


def test_nobody_is_online_before_this_session_has_heard_so(fleet):
    """The broker may be another than before, and empty."""

    async def scenario():
        async with fleet.device("x").joined():
            for epoch in (1, 2):
                async with fleet.serving(epoch=epoch):
                    await asyncio.sleep(0.5)
                    assert online_of(fleet)  # as the broker has it
            fleet.broker = MemoryBroker()
            async with fleet.serving(epoch=3):
                await asyncio.sleep(0.5)
                assert not online_of(fleet)

    run(scenario())


def online_of(fleet):
    with fleet.opened() as (journal, _):
        return [device.online for device in journal.devices()] == [True]
