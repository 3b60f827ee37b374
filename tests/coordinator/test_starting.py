"""A coordinator that has only just begun: it can be told to stop, and hears devices that came before it."""

import asyncio
import subprocess
import sys

import pytest

from edge.protocol.topics import Topics
from edge.transport.mqtt.transport import MqttTransport
from edge.transport.settings import MqttSettings

LIMIT_S = 60.0
SOON_S = 4.0  # less than amqtt waits for an acknowledgement


@pytest.fixture
def serve(fleet):
    """`serve(url, *flags)`: the command as a process."""
    started = []

    def start(url, *flags):
        options = {"--broker": url, "--fleet": "home", "--base": fleet.base, "--state": fleet.folder}
        arguments = [str(part) for pair in options.items() for part in pair]
        command = [sys.executable, "-m", "tunefleet", "serve", *arguments, *flags]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_it_ends_while_it_waits_for_a_broker(fleet):
    async def scenario():
        fleet.broker.stop()
        async with fleet.serving():
            await asyncio.sleep(0.1)  # leaving it tells it to stop, and waits for that

    asyncio.run(scenario())


def test_what_is_retained_of_devices_does_not_hold_it_up(serve):
    pytest.importorskip("amqtt", reason="needs the broker extra")
    broker = pytest.importorskip("edge.transport.amqtt", reason="needs the broker extra")
    topics = Topics("home")

    async def scenario():
        async with broker.EmbeddedBroker() as embedded:
            settings = MqttSettings.from_url(embedded.url, "watcher", protocol="3.1.1")
            async with MqttTransport(settings) as watcher:
                for kind in ("hello", "state"):
                    await watcher.publish(topics.device("early", kind), b"{}", retain=True)
                for topic in (topics.coordinator, topics.version("+")):
                    await watcher.subscribe(topic)
                serve(embedded.url, "--protocol", "3.1.1")
                messages = watcher.messages()
                async with asyncio.timeout(LIMIT_S):
                    assert (await anext(messages)).topic == topics.coordinator
                async with asyncio.timeout(SOON_S):
                    while (await anext(messages)).topic == topics.coordinator:
                        pass

    asyncio.run(scenario())
