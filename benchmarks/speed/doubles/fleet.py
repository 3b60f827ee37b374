"""A closed loop: each double sends its next update when the last one has its verdict, and counts the time.

Prints one JSON object when its time is over and every update that it had begun has its verdict, or the grace
has passed. Ids of accepted updates go into a file, for whoever holds them against the journal.

Run as: python -m benchmarks.speed.doubles.fleet SETTINGS-AS-JSON
"""

import asyncio
import hashlib
import sys
import time
from collections import Counter
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from benchmarks.speed.doubles.mqtt import Ears, Mqtt, Will
from benchmarks.speed.doubles.wire import Voice, new_patience, read_manifest
from edge.protocol.chunks import num_chunks
from edge.protocol.delta import update_id
from edge.protocol.messages import Manifest, UpdateHeader
from edge.protocol.sending import Push

WINDOW = 16
JOIN_AT_A_TIME = 50


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """What a process of doubles is told."""

    port: int
    fleet: str
    first: int  # number of the first double
    count: int
    payload: str  # file of the encoded delta that all of them send
    chunk_bytes: int
    warmup_s: float
    seconds: float
    grace_s: float
    accepted: str  # file of the ids that were receipted as accepted, a line each


class Report(Struct, frozen=True):
    """What a process of doubles saw."""

    latencies: tuple[float, ...]  # seconds from the first part to the verdict, in the measured time
    verdicts: dict[str, int]  # by status or reason, over the whole time
    headers: int  # sent, over the whole time
    chunks: int
    updates: int  # begun, over the whole time
    unanswered: int  # without a verdict when the grace had passed
    lost: int  # connections that broke


class Course:
    """What all doubles of a process share: the manifest, the clock's marks, the counts."""

    def __init__(self, settings: Settings, payload: bytes, accepted: BinaryIO) -> None:
        self.settings, self.payload = settings, payload
        self.sha256 = hashlib.sha256(payload).hexdigest()
        self.manifest: Manifest | None = None
        self.has_manifest = asyncio.Event()
        self.is_over = False
        self.measured_from = float("inf")
        self.latencies: list[float] = []
        self.verdicts: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self._accepted = accepted

    def announce(self, payload: bytes) -> None:
        """Takes a manifest; the newest counts."""
        manifest = read_manifest(payload)
        if self.manifest is None or manifest.version > self.manifest.version:
            self.manifest = manifest
            self.has_manifest.set()

    def settle(self, update: str, verdict: str, began: float, now: float) -> None:
        """Counts a verdict."""
        self.verdicts[verdict] += 1
        if verdict == "accepted":
            self._accepted.write(f"{update}\n".encode())
        if not self.is_over and now >= self.measured_from:
            self.latencies.append(now - began)


class Double:
    """One device."""

    def __init__(self, course: Course, number: int) -> None:
        self._course = course
        self._voice = Voice(course.settings.fleet, f"double-{number}")
        self._loop = asyncio.get_running_loop()
        self._parts: dict[int, int | str] = {}  # number of the publish to the part
        self._attempts: Counter[int] = Counter()
        self._patience = new_patience()
        self._push: Push | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.is_idle = asyncio.Event()
        self.is_idle.set()

    async def join(self, reads_versions: bool) -> None:
        """Connects, subscribes, and says who it is."""
        voice, course = self._voice, self._course
        will = Will(voice.presence_topic, voice.presence(online=False))
        ears = Ears(self._heard, self._acknowledged, self._lost)
        name = f"{course.settings.fleet}-{voice.device_id}"
        _, self._mqtt = await self._loop.create_connection(
            lambda: Mqtt(name, will, ears), "127.0.0.1", course.settings.port
        )
        await self._mqtt.is_ready
        self._mqtt.publish(voice.presence_topic, voice.presence(online=True), retain=True)
        self._receipt_topic = voice.topics.device(voice.device_id, "receipt")
        await self._mqtt.subscribe(self._receipt_topic)
        if reads_versions:  # one hears for all: a manifest to each costs the broker, and is no receipt
            await self._mqtt.subscribe(voice.topics.version("+"))
        await course.has_manifest.wait()
        assert course.manifest
        self._mqtt.publish(*voice.hello(course.manifest), retain=True)

    def begin(self) -> None:
        """Sends the next update, unless the time is over."""
        course = self._course
        if course.is_over:
            self._push = None
            self.is_idle.set()
            return
        self._header = self._make_header()
        total = num_chunks(self._header.size_bytes, self._header.chunk_bytes)
        self._push = Push(total, self._patience)
        self._began = self._loop.time()
        self._parts.clear()
        self.is_idle.clear()
        course.sent["updates"] += 1
        self._go_on()

    def _make_header(self) -> UpdateHeader:
        course, voice = self._course, self._voice
        manifest = course.manifest
        assert manifest
        self._attempts[manifest.version] += 1
        attempt = self._attempts[manifest.version]
        base_sha256 = manifest.sha256 if manifest.epoch else None
        named = voice.device_id, manifest.version, attempt, course.sha256, base_sha256
        return UpdateHeader(
            update=update_id(*named), fleet=manifest.fleet, device_id=voice.device_id, tier=manifest.tier,
            base_version=manifest.version, base=manifest.base, attempt=attempt, sha256=course.sha256,
            size_bytes=len(course.payload), chunk_bytes=course.settings.chunk_bytes,
            encoding=manifest.encoding, num_examples=20, num_tokens=1000, num_steps=20, seconds=10.0,
            loss_before=2.0, loss_after=1.0, base_sha256=base_sha256,
            **voice.facts(course.payload, course.settings.chunk_bytes),
        )  # fmt: skip

    def _go_on(self) -> None:
        """Sends what the machine gives out, and sets the clock for when it is to be asked again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        push = self._push
        if push is None:
            return
        while (part := push.next(self._loop.time(), WINDOW)) is not None:
            if part == "header":
                self._course.sent["headers"] += 1
                topic, content = self._voice.header(self._header)
            else:
                self._course.sent["chunks"] += 1
                topic, content = self._voice.chunk(self._header, part, self._course.payload)
            self._parts[self._mqtt.publish(topic, content)] = part
        wait_s = push.wait_s(self._loop.time())
        if wait_s is not None:
            self._timer = self._loop.call_later(wait_s, self._go_on)

    def _acknowledged(self, number: int) -> None:
        part = self._parts.pop(number, None)
        if part is not None and self._push is not None:
            self._push.sent(part, self._loop.time())
            self._go_on()

    def _heard(self, topic: str, payload: bytes) -> None:
        if topic != self._receipt_topic:
            self._course.announce(payload)
            return
        receipt, push, now = self._voice.receipt(payload), self._push, self._loop.time()
        if push is None or receipt.update != self._header.update:
            return
        push.receive(receipt, now)
        if push.verdict is None:
            self._course.verdicts[receipt.status] += 1
            self._go_on()
            return
        self._course.settle(receipt.update, receipt.reason or receipt.status, self._began, now)
        self.begin()

    def _lost(self) -> None:
        self._course.sent["lost"] += 1


async def play(settings: Settings) -> Report:
    """Runs all doubles of this process to the end."""
    payload = Path(settings.payload).read_bytes()
    with Path(settings.accepted).open("wb") as accepted:
        course = Course(settings, payload, accepted)
        doubles = [Double(course, settings.first + number) for number in range(settings.count)]
        for start in range(0, len(doubles), JOIN_AT_A_TIME):
            some = doubles[start : start + JOIN_AT_A_TIME]
            await asyncio.gather(*(one.join(one is doubles[0]) for one in some))
        loop = asyncio.get_running_loop()
        course.measured_from = loop.time() + settings.warmup_s
        for one in doubles:
            one.begin()
        await asyncio.sleep(settings.warmup_s + settings.seconds)
        course.is_over = True
        try:
            async with asyncio.timeout(settings.grace_s):
                await asyncio.gather(*(one.is_idle.wait() for one in doubles))
        except TimeoutError:
            print(f"{time.ctime()}: some updates have no verdict", file=sys.stderr)
    return Report(
        latencies=tuple(course.latencies), verdicts=dict(course.verdicts), headers=course.sent["headers"],
        chunks=course.sent["chunks"], updates=course.sent["updates"],
        unanswered=sum(not one.is_idle.is_set() for one in doubles), lost=course.sent["lost"],
    )  # fmt: skip


if __name__ == "__main__":
    report = asyncio.run(play(msgspec.json.decode(sys.argv[1], type=Settings)))
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
