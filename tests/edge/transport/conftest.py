"""Places where the contract of a transport is tried: a broker that can be stopped, and clients of it."""

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge.transport.base import BirthAndWill, MakePresence, Message, Transport
from edge.transport.memory import MemoryBroker, MemoryTransport
from edge.transport.mqtt.transport import MqttTransport
from edge.transport.settings import MqttSettings

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin") or shutil.which(
    "mosquitto"
)
VICTIM = """
import asyncio, sys
from edge.transport.base import BirthAndWill
from edge.transport.mqtt.transport import MqttTransport
from edge.transport.settings import MqttSettings

async def main(url, protocol, client_id, topic):
    def presence():
        return BirthAndWill(topic, b"on", b"off")

    async with MqttTransport(MqttSettings.from_url(url, client_id, protocol=protocol), presence):
        print("connected", flush=True)
        await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MemorySite:
    """A broker in memory."""

    is_persistent = True

    def __init__(self) -> None:
        self.broker = MemoryBroker()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    def client(self, client_id: str, presence: MakePresence | None = None) -> Transport:
        return MemoryTransport(self.broker, client_id, presence)

    async def kill_client(self, client_id: str, presence: BirthAndWill) -> None:
        await self.client(client_id, lambda: presence).__aenter__()
        self.broker.kill(client_id)

    async def restart(self) -> None:
        self.broker.stop()
        await asyncio.sleep(0.05)
        self.broker.start()


class MqttSite:
    """A broker on a port of this machine, spoken to in one version of MQTT."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"

    def client(self, client_id: str, presence: MakePresence | None = None) -> MqttTransport:
        settings = MqttSettings.from_url(self.url, client_id, protocol=self.protocol, wait_for_broker_s=5)
        return MqttTransport(settings, presence, max_backoff_s=0.2)

    async def kill_client(self, client_id: str, presence: BirthAndWill) -> None:
        words = [sys.executable, "-c", VICTIM, self.url, self.protocol, client_id, presence.topic]
        victim = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        assert victim.stdout is not None
        assert await victim.stdout.readline() == b"connected\n"
        victim.kill()
        await victim.wait()


class MosquittoSite(MqttSite):
    """Mosquitto with its persistence on, as the documentation recommends."""

    is_persistent = True

    def __init__(self, protocol: str, folder: Path, lines: str = "allow_anonymous true") -> None:
        super().__init__(protocol)
        self._config = folder / "mosquitto.conf"
        # As root Mosquitto would change its user, and could not write to the folder.
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\n{lines}\npersistence true\npersistence_location {folder}/\n"
            "max_queued_messages 0\nuser root\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self):
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.stop()

    async def start(self) -> None:
        assert MOSQUITTO
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen([MOSQUITTO, "-c", self._config], stdout=quiet, stderr=quiet)
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            await asyncio.sleep(0.02)
        raise RuntimeError(f"mosquitto does not listen on {self.port}")

    def stop(self) -> None:
        """SIGTERM: Mosquitto writes its database on the way out; SIGKILL leaves the last autosave's."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    async def restart(self) -> None:
        self.stop()
        await asyncio.sleep(0.1)
        await self.start()


class AmqttSite(MqttSite):
    """The embedded broker: forgets all when it stops, and what was not acknowledged on a disconnect."""

    is_persistent = False

    def __init__(self) -> None:
        super().__init__("3.1.1")
        from edge.transport.amqtt import EmbeddedBroker

        self._new_broker = lambda: EmbeddedBroker(self.port)

    async def __aenter__(self):
        self._broker = await self._new_broker().__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._broker.__aexit__(None, None, None)

    async def restart(self) -> None:
        await self.__aexit__()
        await self.__aenter__()


@pytest.fixture(
    params=[
        "memory",
        pytest.param("mosquitto-5", marks=pytest.mark.broker),
        pytest.param("mosquitto-3.1.1", marks=pytest.mark.broker),
        "amqtt",
    ]
)
def site(request: pytest.FixtureRequest, tmp_path: Path):
    if request.param == "memory":
        return MemorySite()
    if request.param == "amqtt":
        pytest.importorskip("amqtt", reason="needs the broker extra")
        return AmqttSite()
    if MOSQUITTO is None:
        pytest.skip("needs the mosquitto program")
    return MosquittoSite(request.param.removeprefix("mosquitto-"), tmp_path)


@pytest.fixture
def mosquitto(tmp_path: Path):
    """Makes a Mosquitto with lines of configuration."""
    if MOSQUITTO is None:
        pytest.skip("needs the mosquitto program")
    return lambda protocol, lines="allow_anonymous true": MosquittoSite(protocol, tmp_path, lines)


async def take(
    messages: AsyncIterator[Message], payloads: set[bytes], within_s: float = 20.0
) -> list[Message]:
    """Messages until every one of `payloads` has come."""
    taken: list[Message] = []
    async with asyncio.timeout(within_s):
        while payloads - {message.payload for message in taken}:
            taken.append(await anext(messages))
    return taken


@pytest.fixture(name="take")
def take_fixture():
    return take
