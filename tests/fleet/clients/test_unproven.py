"""What strangers send to a device: it downloads, delivers and goes on as if they were not there."""

import asyncio
from contextlib import asynccontextmanager

from edge.protocol.messages import Receipt
from edge.protocol.signing import Signer, new_key
from edge.protocol.topics import BlobTopic, Topics, WantTopic
from edge.transport.memory import MemoryTransport

TOPICS = Topics("home")


@asynccontextmanager
async def stranger(home, do, *topic_filters):
    """Somebody who hears `topic_filters`, and answers each message by what `do` returns."""
    async with MemoryTransport(home.broker, "stranger") as transport:
        for topic_filter in topic_filters:
            await transport.subscribe(topic_filter)

        async def listen():
            async for message in transport.messages():
                for topic, payload in do(message):
                    await transport.publish(topic, payload)

        listening = asyncio.create_task(listen())
        try:
            yield transport
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


def test_junk_for_each_want_does_not_keep_a_device_downloading(home):
    """528 bytes a want once did, for ever; here all 17 chunks are junk first."""
    seen = []

    def junk(message):
        match TOPICS.parse(message.topic):
            case WantTopic():
                return [(topic, bytes(1024 + 160)) for topic in seen]
            case BlobTopic() as topic:
                name = TOPICS.blob(topic.sha256, topic.number)
                if name not in seen:
                    seen.append(name)
        return []

    async def way():
        topics = (TOPICS.device("+", "want"), "tunefleet/v2/home/blob/+/+")
        async with stranger(home, junk, *topics), home.coordinator(), home.running() as device:
            await device.until("accepted", 2)
        assert len(seen) > 2
        assert not [event for event in device.of("warning") if "damaged" in event.text]

    asyncio.run(way())


def test_a_verdict_about_other_bytes_or_by_others_drops_no_work(home):
    """Forged by a stranger, sent again from another update, or about another header of the same update."""
    kept = []

    def lie(message):
        kind = message.topic.rpartition("/")[2]
        if kind == "receipt":
            kept.append(message.payload)
            return []
        update = message.topic.split("/")[6]
        topic = TOPICS.device("lamp", "receipt")
        forged = Receipt(update=update, header="0" * 64, status="rejected", reason="too-large")
        lies = [Signer(key, 2**50).seal(topic, forged) for key in (new_key(), new_key())]
        return [(topic, payload) for payload in (*lies, *kept)]

    async def way():
        recipe = {"steps": 1, "seq_tokens": 64, "batch_tokens": 128}
        topics = (TOPICS.up("+", "+", "header"), TOPICS.device("+", "receipt"))
        async with (
            stranger(home, lie, *topics),
            home.coordinator(recipe=recipe),
            home.device(max_tasks=3) as device,
        ):
            await device.client.run()
        assert len(device.of("accepted")) == 3
        assert not device.of("rejected")

    asyncio.run(way())


def test_an_old_manifest_in_the_place_of_the_newest_takes_a_restarted_device_nowhere(home):
    """What was announced while it trained counts too, though no task began with it."""
    kept = []

    def keep(message):
        if not message.retained:
            kept.append(message.payload)
        return []

    async def way():
        recipe = {"steps": 20, "seq_tokens": 64, "batch_tokens": 128}
        topic = TOPICS.version("r4")
        async with stranger(home, keep, topic) as enemy, home.coordinator(recipe=recipe):
            async with home.running(slowdown=100.0) as slow:
                await slow.until("training")
                async with home.device("fan", max_tasks=2) as fan:
                    await fan.client.run()
                async with asyncio.timeout(10):
                    while slow.state.memory.newest < 2:
                        await asyncio.sleep(0.01)
            await enemy.publish(topic, kept[0], retain=True)
            async with home.running(max_tasks=2) as again:
                await again.until("warning")
                assert again.state.memory.newest >= 2
                assert again.client is not slow.client

    asyncio.run(way())
