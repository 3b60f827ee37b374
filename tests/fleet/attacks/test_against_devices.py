"""Real clients beside a stranger: they drop no work, go back to no version, and nothing ends them."""

import asyncio

import pytest

from edge.protocol.messages import Manifest, Receipt, Recipe
from edge.protocol.signing import read_signed

ONE_STEP = {"steps": 1, "seq_tokens": 64, "batch_tokens": 128}


def test_no_forged_or_moved_receipt_makes_a_device_drop_its_work(home, stranger):
    """Of another key, about another header, and the coordinator's own about another update."""

    async def way():
        async with stranger(home.broker) as s, home.coordinator(recipe=ONE_STEP):
            overhearing = asyncio.create_task(s.keep(s.topics.device("fan", "receipt"), 1))
            async with home.running("fan") as fan:
                await fan.until("accepted")
                await overhearing
            (heard,) = s.heard
            async with home.running() as device:
                waiting = await device.until("spooled")
                update = waiting.facts.get("update", "0" * 32)
                for status, reason in (
                    ("rejected", "foreign-base"),
                    ("rejected", "banned"),
                    ("accepted", None),
                ):
                    receipt = Receipt(update=update, header="0" * 64, status=status, reason=reason)
                    await s.say(s.topics.device("lamp", "receipt"), receipt)
                await s.publish(s.topics.device("lamp", "receipt"), heard.payload)
                await device.until("accepted", 2)
                assert not device.of("rejected")
                assert not device.of("dropped")

    asyncio.run(way())


def test_junk_for_every_chunk_holds_no_download_up(home, stranger):
    async def way():
        async with stranger(home.broker) as s, home.coordinator(recipe=ONE_STEP):
            await s.subscribe(s.topics.device("lamp", "want"))

            async def answer_with_junk():
                async for message in s.messages():
                    want = read_signed(message.payload)
                    sha256 = bytes(want.body).decode().split('"sha256":"')[1][:64]
                    for number in range(16):
                        for junk in (b"x" * 528, b"\0" * 1024, b""):
                            await s.publish(s.topics.blob(sha256, number), junk)

            junk = asyncio.create_task(answer_with_junk())
            async with home.running() as device:
                await device.until("accepted", 2)
            junk.cancel()
            await asyncio.gather(junk, return_exceptions=True)

    asyncio.run(way())


def test_an_old_manifest_takes_nobody_back(home, stranger):
    """A device that was restarted stays at its version though the broker keeps an older one."""

    async def way():
        async with stranger(home.broker) as s:
            overhearing = asyncio.create_task(s.keep(s.topics.version("r4"), 1))
            async with home.coordinator(recipe=ONE_STEP), home.running() as device:
                await device.until("accepted", 2)
                await overhearing
            (old,) = s.heard
            await s.publish(old.topic, old.payload, retain=True)
            async with home.running(patience_s=0.05) as device:
                await device.until("warning")
                assert not device.of("training")
                assert not device.of("spooled")
            async with home.coordinator(recipe=ONE_STEP), home.running() as device:
                told = await device.until("accepted")
                assert told.facts["base_version"] >= 2

    asyncio.run(way())


@pytest.mark.parametrize(
    "payload",
    [
        b'{"body":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"body":{},"key":"' + b"0" * 64 + b'","signature":"' + b"0" * 128 + b'","epoch":1e999,"count":-1}',
        b"\xff\xfe",
        b"[" * 60_000,
    ],
    ids=["deep", "numbers", "utf-16", "open"],
)
def test_what_is_retained_ends_neither_side_at_its_start(home, stranger, payload):
    async def way():
        async with stranger(home.broker) as s:
            topics = s.topics
            kinds = ("hello", "state", "want", "receipt", "telemetry", "access", "nonsense")
            long, update, blob = "9" * 5000, "0" * 32, "0" * 64
            for topic in (
                *(topics.version(tier) for tier in ("r4", "zz")),
                *(topics.coordinator, topics.answer, topics.challenge),
                *(topics.device("lamp", kind) for kind in kinds),
                *(topics.up("lamp", update, part) for part in ("header", 0, long)),
                *(topics.blob(blob, number) for number in (0, long)),
            ):
                await s.publish(topic, payload, retain=True)
            for _ in range(2):
                async with home.coordinator(recipe=ONE_STEP), home.running() as device:
                    await device.until("accepted")

    asyncio.run(way())


def test_a_version_of_impossible_size_takes_no_memory_and_no_room(home, stranger):
    """Signed by whoever a new device sees first: a terabyte is said to be coming."""

    async def way():
        async with stranger(home.broker) as s:
            manifest = Manifest(
                fleet="home", tier="r4", version=0, parent=None, sha256="0" * 64, root="0" * 64,
                size_bytes=1 << 40, chunk_bytes=1024, encoding="f32", base="0" * 64, rank=4, space="product",
                recipe=Recipe(steps=1), epoch=1,
            )  # fmt: skip
            await s.say(s.topics.version("r4"), manifest, retain=True)
            async with home.device() as device:
                task = asyncio.create_task(device.client.run())
                await asyncio.wait({task}, timeout=5)
                device.client.stop()
                await asyncio.gather(task, return_exceptions=True)
            files = [path for path in (home.folder / "lamp").rglob("*") if path.is_file()]
            assert sum(path.stat().st_blocks * 512 for path in files) < 1 << 20

    asyncio.run(way())


def test_what_travels_tells_a_broker_no_tensor_and_no_loss(home, stranger):
    """A listener that hears everything cannot decode an update, and reads no loss in its header."""

    async def way():
        async with stranger(home.broker) as s, home.coordinator(recipe=ONE_STEP):
            overhearing = asyncio.create_task(s.keep(s.topics.up("+", "+", "+"), 3))
            async with home.running() as device:
                await device.until("accepted")
                await overhearing
            headers = [one for one in s.heard if one.topic.endswith("/header")]
            assert headers
            for message in headers:
                body = bytes(read_signed(message.payload).body)
                assert b"loss" not in body
                assert b"num_examples" not in body
            assert all(b"self_attn" not in one.payload for one in s.heard)

    asyncio.run(way())
