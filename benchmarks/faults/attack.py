"""Somebody who may publish on the broker, and does: one process, one kind of message, so many a second.

    junk-headers   headers that are none, on the topics of honest devices
    junk-chunks    chunks that are none, of every update whose header goes by
    junk-blobs     chunks that are none, of every version that is asked for
    replays        whatever went by, once more
    stranger       hellos, headers, wants, telemetry and presence, well signed, each by a key of its own
    enrolled       the same, all of one device that the fleet has enrolled

Says `ready` when it has connected and heard of a version, and how many it has sent when it is told to end.

Run as: python -m benchmarks.faults.attack PORT FLEET KIND RATE VICTIM,VICTIM,…
"""

import asyncio
import hashlib
import itertools
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
from msgspec import Struct
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from edge.protocol.delta import update_id
from edge.protocol.messages import (
    Hello,
    Manifest,
    Presence,
    Telemetry,
    UpdateHeader,
    Want,
)
from edge.protocol.signing import Signer
from edge.protocol.topics import ROOT, Topics

KINDS = ("junk-headers", "junk-chunks", "junk-blobs", "replays", "stranger", "enrolled")
CHUNK_BYTES = 4096  # of junk
MOST_HEARD = 2000
TICK_S = 0.01


class Order(NamedTuple):
    """What an attack is told."""

    port: int
    fleet: str
    kind: str
    rate: float  # messages a second
    victims: tuple[str, ...]


class _Envelope(Struct, frozen=True):
    body: Manifest


class Ear:
    """What goes by on the broker, which shows everything to everybody here."""

    def __init__(self) -> None:
        self.manifest: Manifest | None = None
        self.heard: deque[tuple[str, bytes]] = deque(maxlen=MOST_HEARD)
        self.updates: deque[tuple[str, str]] = deque(maxlen=50)  # device and update
        self.blobs: deque[str] = deque(maxlen=50)

    def hear(self, topic: str, payload: bytes) -> None:
        """Takes one message."""
        levels = topic.split("/")
        if "version" in levels and payload:
            self.manifest = msgspec.json.decode(payload, type=_Envelope).body
        if levels[-1] == "header":
            self.updates.append((levels[4], levels[6]))
        if "blob" in levels:
            self.blobs.append(levels[4])
        self.heard.append((topic, payload))


class Mouth:
    """Makes messages of one kind.

    Args:
        order: What is told.
        ear: What has gone by.
    """

    def __init__(self, order: Order, ear: Ear) -> None:
        self._order, self._ear = order, ear
        self._topics = Topics(order.fleet)
        self._random = random.Random(0)
        self._count = itertools.count()
        self._own = self._new_signer()

    def messages(self) -> Iterator[tuple[str, bytes]]:
        """Yields messages for ever."""
        ways: dict[str, Callable[[], tuple[str, bytes]]] = {
            "junk-headers": self._junk_header,
            "junk-chunks": self._junk_chunk,
            "junk-blobs": self._junk_blob,
            "replays": self._replay,
            "stranger": lambda: self._signed(f"stranger-{next(self._count)}", self._new_signer()),
            "enrolled": lambda: self._signed("mallory", self._own),
        }
        if self._order.kind == "enrolled":
            yield self._hello("mallory", self._own)
        while True:
            yield ways[self._order.kind]()

    def _new_signer(self) -> Signer:
        return Signer(self._random.randbytes(32), time.time_ns() // 1_000_000)

    def _junk_header(self) -> tuple[str, bytes]:
        device, update = self._random.choice(self._order.victims), self._random.randbytes(16).hex()
        return self._topics.up(device, update, "header"), self._random.randbytes(400)

    def _junk_chunk(self) -> tuple[str, bytes]:
        if not self._ear.updates:
            return self._junk_header()
        device, update = self._random.choice(self._ear.updates)
        return self._topics.up(device, update, self._random.randrange(2)), self._random.randbytes(CHUNK_BYTES)

    def _junk_blob(self) -> tuple[str, bytes]:
        if not self._ear.blobs:
            return self._junk_header()
        blob = self._topics.blob(self._random.choice(self._ear.blobs), self._random.randrange(9))
        return blob, self._random.randbytes(CHUNK_BYTES)

    def _replay(self) -> tuple[str, bytes]:
        return self._random.choice(self._ear.heard) if self._ear.heard else self._junk_header()

    def _signed(self, device: str, signer: Signer) -> tuple[str, bytes]:
        make = self._random.choice((self._hello, self._header, self._want, self._telemetry, self._presence))
        return make(device, signer)

    def _hello(self, device: str, signer: Signer) -> tuple[str, bytes]:
        topic, manifest = self._topics.device(device, "hello"), self._manifest
        hello = Hello(
            device_id=device, backend="toy", ranks=(manifest.rank,), encodings=("f32",), memory_bytes=1,
            tokens_per_s=None, base=manifest.base,
        )  # fmt: skip
        return topic, signer.seal(topic, hello)

    def _header(self, device: str, signer: Signer) -> tuple[str, bytes]:
        manifest, sha256 = self._manifest, self._random.randbytes(32).hex()
        attempt = self._random.randrange(1 << 20)
        update = update_id(device, manifest.version, attempt, sha256, manifest.sha256)
        header = UpdateHeader(
            update=update, fleet=self._order.fleet, device_id=device, tier=manifest.tier,
            base_version=manifest.version, base=manifest.base, attempt=attempt, sha256=sha256, root=sha256,
            size_bytes=60_000, chunk_bytes=65_536, encoding=manifest.encoding, num_examples=1, num_tokens=1,
            num_steps=1, seconds=1.0, loss_before=1.0, loss_after=1.0, base_sha256=manifest.sha256,
        )  # fmt: skip
        topic = self._topics.up(device, update, "header")
        return topic, signer.seal(topic, header)

    def _want(self, device: str, signer: Signer) -> tuple[str, bytes]:
        topic = self._topics.device(device, "want")
        return topic, signer.seal(
            topic, Want(sha256=self._manifest.sha256, ranges=((0, 1 << 20),), window=16)
        )

    def _telemetry(self, device: str, signer: Signer) -> tuple[str, bytes]:
        topic, version = self._topics.device(device, "telemetry"), self._manifest.version
        told = Telemetry(base_version=version, step=1, steps=2, loss=1.0, tokens_per_s=1.0, memory_bytes=1)
        return topic, signer.seal(topic, told)

    def _presence(self, device: str, signer: Signer) -> tuple[str, bytes]:
        topic = self._topics.device(device, "state")
        return topic, signer.seal(topic, Presence(online=self._random.random() < 0.5))

    @property
    def _manifest(self) -> Manifest:
        assert self._ear.manifest
        return self._ear.manifest


async def attack(order: Order) -> int:
    """Attacks until SIGTERM, and returns how many messages went out."""
    over, ear = asyncio.Event(), Ear()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    client = Client(CallbackAPIVersion.VERSION2, f"attack-{hashlib.sha256(os.urandom(8)).hexdigest()[:8]}")

    def heard(_client: object, _userdata: object, message: MQTTMessage) -> None:
        ear.hear(message.topic, bytes(message.payload))

    client.on_message = heard
    client.on_connect = lambda *_: client.subscribe(f"{ROOT}/{order.fleet}/#")  # type: ignore[assignment]
    client.connect("127.0.0.1", order.port)
    client.loop_start()
    while ear.manifest is None:
        await asyncio.sleep(TICK_S)
    if order.kind in ("junk-headers", "stranger", "enrolled"):
        client.unsubscribe(f"{ROOT}/{order.fleet}/#")  # they need not listen
        client.subscribe(f"{ROOT}/{order.fleet}/version/+")
    messages, sent, began = Mouth(order, ear).messages(), 0, time.monotonic()
    print("ready", flush=True)
    while not over.is_set():
        due = int((time.monotonic() - began) * order.rate)
        for _ in range(due - sent):
            client.publish(*next(messages), qos=0)
        sent = due
        await asyncio.sleep(TICK_S)
    client.disconnect()
    client.loop_stop()
    return sent


def main() -> None:
    """Attacks as the command line says."""
    port, fleet, kind, rate, victims = sys.argv[1:]
    print(
        asyncio.run(attack(Order(int(port), fleet, kind, float(rate), tuple(victims.split(","))))), flush=True
    )


if __name__ == "__main__":
    main()
