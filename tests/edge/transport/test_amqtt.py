"""The embedded broker's end: whatever its clients do, it is over at once."""

import asyncio

import pytest

from edge.transport.mqtt.transport import MqttTransport
from edge.transport.settings import MqttSettings

pytest.importorskip("amqtt", reason="needs the broker extra")
broker = pytest.importorskip("edge.transport.amqtt", reason="needs the broker extra")

LONG_S = 5.0  # its own bound is a second, and what it needs is milliseconds


async def talk(client):
    while True:
        await client.publish("x/talk", bytes(60_000))


async def listen(client):
    await client.subscribe("x/#")
    async for _ in client.messages():
        pass


def test_it_ends_while_its_clients_go_on_talking():
    async def scenario():
        embedded = await broker.EmbeddedBroker().__aenter__()
        tasks = []
        for name in ("a", "b", "c"):
            client = MqttTransport(MqttSettings.from_url(embedded.url, name, protocol="3.1.1"))
            await client.__aenter__()
            tasks += [asyncio.create_task(work(client)) for work in (listen, talk, talk)]
        await asyncio.sleep(0.5)
        async with asyncio.timeout(LONG_S):
            await embedded.__aexit__(None, None, None)

    asyncio.run(scenario())
