"""Faults of the broker in memory: seeded, and after the publisher's acknowledgement."""

import asyncio

import pytest

from edge.errors import TransportError
from edge.transport.memory import MemoryBroker, MemoryTransport, matches


def deliveries(seed: int = 0, **faults: float) -> list[int]:
    """What a reader gets of 0 … 99."""

    async def scenario() -> list[int]:
        broker = MemoryBroker(seed, **faults)
        async with MemoryTransport(broker, "reader") as reader, MemoryTransport(broker, "writer") as writer:
            await reader.subscribe("t")
            for number in range(100):
                await writer.publish("t", b"%d" % number)
            await asyncio.sleep(0.05)
            reading = asyncio.create_task(_read_all(reader))
            await asyncio.sleep(0.01)
            await reader.__aexit__()
            return await reading

    return asyncio.run(scenario())


async def _read_all(client: MemoryTransport) -> list[int]:
    return [int(message.payload) async for message in client.messages()]


def test_without_faults_everything_comes_once_and_in_order():
    assert deliveries() == list(range(100))


def test_loss_drops_about_its_share():
    assert 10 <= 100 - len(deliveries(loss=0.2)) <= 30


def test_repetition_brings_about_its_share_twice():
    got = deliveries(repeat=0.2)
    assert set(got) == set(range(100))
    assert 110 <= len(got) <= 130


def test_reordering_loses_nothing():
    got = deliveries(reorder=0.3)
    assert got != sorted(got)
    assert sorted(got) == list(range(100))


def test_the_same_seed_gives_the_same_faults():
    assert deliveries(5, loss=0.5, repeat=0.1) == deliveries(5, loss=0.5, repeat=0.1)
    assert deliveries(5, loss=0.5) != deliveries(6, loss=0.5)


def test_a_full_queue_drops_what_comes_then():
    assert deliveries(max_queued=10) == list(range(10))


def test_publishes_wait_while_the_broker_is_down():
    async def scenario():
        broker = MemoryBroker()
        async with MemoryTransport(broker, "writer") as writer:
            broker.stop()
            publishing = asyncio.create_task(writer.publish("t", b"1"))
            await asyncio.sleep(0.01)
            assert not publishing.done()
            broker.start()
            await publishing

    asyncio.run(scenario())


def test_a_second_client_under_the_same_id_throws_the_first_out():
    async def scenario():
        broker = MemoryBroker()
        first = MemoryTransport(broker, "d1")
        async with first, MemoryTransport(broker, "d1") as second:
            with pytest.raises(TransportError):
                await first.publish("t", b"1")
            await second.publish("t", b"1")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("topic_filter", "topic", "is_match"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/+", "a", False),
        ("+/b", "a/b", True),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("#", "a/b", True),
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a/b/d", False),
        ("a", "a/b", False),
    ],
)
def test_wildcards(topic_filter, topic, is_match):
    assert matches(topic_filter, topic) is is_match
