"""The contract of `edge.transport.base.Transport`, over every implementation and every broker."""

import asyncio
import hashlib
import random

import pytest

from edge.errors import TransportError
from edge.transport.base import BirthAndWill, Message


def test_every_published_message_arrives(site, take):
    async def scenario():
        async with site, site.client("reader") as reader, site.client("writer") as writer:
            await reader.subscribe("fleet/+/up/#")
            payloads = {b"%d" % number for number in range(50)}
            await asyncio.gather(*(writer.publish("fleet/d1/up/u1/" + p.decode(), p) for p in payloads))
            await writer.publish("fleet/d1/down", b"of no concern")
            taken = await take(reader.messages(), payloads)
            assert {(m.topic, m.payload) for m in taken} == {
                (f"fleet/d1/up/u1/{p.decode()}", p) for p in payloads
            }

    asyncio.run(scenario())


def test_a_late_subscriber_gets_what_is_retained(site, take):
    async def scenario():
        async with site, site.client("reader") as reader, site.client("writer") as writer:
            await writer.publish("version/r8", b"1", retain=True)
            await writer.publish("version/r8", b"2", retain=True)
            await reader.subscribe("version/+")
            messages = reader.messages()
            assert await anext(messages) == Message("version/r8", b"2", retained=True)
            await writer.publish("version/r8", b"3", retain=True)
            assert await anext(messages) == Message("version/r8", b"3", retained=False)

    asyncio.run(scenario())


def test_an_empty_payload_clears_what_is_retained(site, take):
    async def scenario():
        async with site, site.client("reader") as reader, site.client("writer") as writer:
            await writer.publish("version/r8", b"1", retain=True)
            await writer.publish("version/r8", b"", retain=True)
            await reader.subscribe("version/+")
            await writer.publish("version/r4", b"fence")
            assert [m.payload for m in await take(reader.messages(), {b"fence"})] == [b"fence"]

    asyncio.run(scenario())


def test_birth_is_retained_while_connected_and_the_wills_payload_after_leaving(site, take):
    async def scenario():
        async with site, site.client("reader") as reader:
            presence = BirthAndWill("device/d1/state", b"on", b"off")
            async with site.client("d1", lambda: presence):
                await reader.subscribe("device/+/state")
                messages = reader.messages()
                assert await anext(messages) == Message("device/d1/state", b"on", retained=True)
            assert await anext(messages) == Message("device/d1/state", b"off", retained=False)
            async with site.client("later") as later:
                await later.subscribe("device/+/state")
                assert await anext(later.messages()) == Message("device/d1/state", b"off", retained=True)

    asyncio.run(scenario())


def test_a_killed_clients_will_is_published(site, take):
    async def scenario():
        async with site, site.client("reader") as reader:
            await reader.subscribe("device/+/state")
            await site.kill_client("d1", BirthAndWill("device/d1/state", b"on", b"off"))
            taken = await take(reader.messages(), {b"on", b"off"})
            assert [m.payload for m in taken] == [b"on", b"off"]

    asyncio.run(scenario())


def test_what_comes_while_a_client_is_away_waits_for_it(site, take):
    async def scenario():
        async with site, site.client("writer") as writer:
            async with site.client("d1") as first:
                await first.subscribe("device/d1/receipt")
            await writer.publish("device/d1/receipt", b"accepted")
            async with site.client("d1") as second:
                await take(second.messages(), {b"accepted"})

    asyncio.run(scenario())


def test_a_message_that_was_being_handled_at_the_end_comes_again(site, take):
    if not site.is_persistent:
        pytest.skip("the embedded broker forgets what was not acknowledged")

    async def scenario():
        async with site, site.client("writer") as writer:
            async with site.client("d1") as first:
                await first.subscribe("device/d1/receipt")
                await writer.publish("device/d1/receipt", b"handled")
                await writer.publish("device/d1/receipt", b"being handled")
                await take(first.messages(), {b"handled", b"being handled"})
            async with site.client("d1") as second:
                assert [m.payload for m in await take(second.messages(), {b"being handled"})] == [
                    b"being handled"
                ]

    asyncio.run(scenario())


def test_an_ended_subscription_brings_nothing_more(site, take):
    async def scenario():
        async with site, site.client("reader") as reader, site.client("writer") as writer:
            await reader.subscribe("blob/+")
            await reader.subscribe("version/+")
            await reader.unsubscribe("blob/+")
            await reader.unsubscribe("never/subscribed")
            await writer.publish("blob/1", b"unwanted")
            await writer.publish("version/r8", b"wanted")
            assert [m.payload for m in await take(reader.messages(), {b"wanted"})] == [b"wanted"]

    asyncio.run(scenario())


def test_200_chunks_of_64_kib_arrive_intact(site, take):
    async def scenario():
        generator = random.Random(0)
        chunks = {f"up/{number}": generator.randbytes(65536) for number in range(200)}
        async with site, site.client("reader") as reader, site.client("writer") as writer:
            await reader.subscribe("up/+")

            async def read():
                return await take(reader.messages(), set(chunks.values()))

            reading = asyncio.create_task(read())
            await asyncio.gather(*(writer.publish(topic, chunk) for topic, chunk in chunks.items()))
            digests = {m.topic: hashlib.sha256(m.payload).digest() for m in await reading}
        assert digests == {topic: hashlib.sha256(chunk).digest() for topic, chunk in chunks.items()}

    asyncio.run(scenario())


def test_a_restart_of_the_broker_is_mended(site, take):
    async def scenario():
        presence = BirthAndWill("device/d1/state", b"on", b"off")
        async with site, site.client("reader") as reader, site.client("d1", lambda: presence) as device:
            await reader.subscribe("#")
            messages = reader.messages()
            await take(messages, {b"on"})
            await site.restart()
            await take(messages, {b"on"})  # the birth, once more
            await device.publish("after", b"the restart")
            await take(messages, {b"the restart"})

    asyncio.run(scenario())


def test_a_restart_of_the_broker_loses_nothing_that_was_published(site, take):
    if not site.is_persistent:
        pytest.skip("the embedded broker forgets sessions when it stops")

    async def scenario():
        payloads = {b"%d" % number for number in range(400)}
        async with site, site.client("reader") as reader, site.client("writer") as writer:
            await reader.subscribe("up/+")
            reading = asyncio.create_task(take(reader.messages(), payloads))
            publishing = asyncio.gather(*(writer.publish("up/1", p) for p in payloads))
            await asyncio.sleep(0.005)
            await site.restart()
            await publishing
            assert {m.payload for m in await reading} == payloads

    asyncio.run(scenario())


def test_a_packet_that_is_too_large_is_refused_here(site):
    async def scenario():
        async with site, site.client("writer") as writer:
            too_large = bytes(min(writer.limits.max_packet_bytes, 300_000_000))
            assert not await writer.publish("up/1", too_large)
            assert await writer.publish("up/1", b"of a size that it takes")

    asyncio.run(scenario())


def test_messages_end_when_the_transport_is_left(site):
    async def scenario():
        async with site:
            client = site.client("reader")
            async with client:
                reading = asyncio.create_task(_read_all(client))
                await asyncio.sleep(0.05)
            async with asyncio.timeout(5):
                assert await reading == []

    asyncio.run(scenario())


def test_a_left_transport_publishes_nothing(site):
    async def scenario():
        async with site:
            client = site.client("writer")
            async with client:
                pass
            with pytest.raises(TransportError):
                await client.publish("up/1", b"late")

    asyncio.run(scenario())


async def _read_all(client):
    return [message async for message in client.messages()]
