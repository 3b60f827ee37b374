"""Brings every message to whom it concerns; none ends the loop: bad ones are dropped, and said so."""

from collections.abc import Callable
from typing import NamedTuple

from coordinator.announcing import Announcer
from coordinator.events.telling import Complaints
from coordinator.intake.admitting import Admitting
from coordinator.intake.allowance import Allowance
from coordinator.intake.arrivals import Arrivals
from coordinator.intake.gate import Gate
from coordinator.intake.roster import Roster
from coordinator.intake.updates import NOT_RECEIPTED, Intake
from coordinator.ledger.head import Head
from coordinator.older_wire import OlderWire
from edge.delivery.place import Place
from edge.delivery.publisher import Publisher
from edge.errors import DiskRefused, ProtocolError, Rejected, Repeated, Unproven
from edge.protocol.messages import Hello, Presence, Telemetry, UpdateHeader, Want
from edge.protocol.topics import (
    ChallengeTopic,
    ChunkTopic,
    CoordinatorTopic,
    DeviceTopic,
    EnrolTopic,
    HeaderTopic,
    HelloTopic,
    StateTopic,
    TelemetryTopic,
    Topics,
    WantTopic,
)
from edge.transport.base import Message, Transport

DEVICE_KINDS = ("hello", "state", "enrol", "want", "telemetry", "up")
AGAIN_S = 5.0  # at the earliest, the version is announced to a device that asks for what is not here


class Offices(NamedTuple):
    """Whom messages concern."""

    intake: Intake
    admitting: Admitting
    arrivals: Arrivals
    roster: Roster
    allowance: Allowance
    publisher: Publisher
    announcer: Announcer
    gate: Gate
    head: Head
    older_wire: OlderWire
    place: Place | None  # None where no other coordinator can come


class Router:
    """Reads the transport's messages.

    Args:
        transport: Of the coordinator.
        topics: Of the fleet.
        offices: Whom messages concern.
        complain: Gets what is wrong with a message.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        offices: Offices,
        complain: Complaints,
        clock: Callable[[], float],
    ) -> None:
        self._transport = transport
        self._topics = topics
        self._offices = offices
        self._complain = complain
        self._clock = clock

    async def subscribe(self) -> None:
        """Asks the broker for all messages that `run` understands."""
        for kind in DEVICE_KINDS:
            await self._transport.subscribe(self._topics.device("+", kind if kind != "up" else "up/+/+"))
        if self._offices.place:
            await self._offices.place.subscribe(self._transport)
        await self._offices.older_wire.subscribe()

    async def run(self) -> None:
        """Takes messages until the transport is left."""
        async for message in self._transport.messages():
            try:
                await self._receive(message)
            except Repeated:
                continue
            except ProtocolError as error:
                topic = message.topic.removeprefix(f"{self._topics.root}/")[:200]
                self._complain(f"{topic}: {error}", kind=f"{_kind(topic)}: {_fault(error)}")
            except (DiskRefused, OSError) as error:
                self._complain(f"{error}; {NOT_RECEIPTED}", kind="disk")
            except Exception as error:  # nothing that is received ends a coordinator
                self._complain.unforeseen(message.topic[:200], error)

    async def _receive(self, message: Message) -> None:
        offices, at, payload = self._offices, self._clock(), message.payload
        if offices.older_wire.takes(message.topic):
            offices.older_wire.hear(message.topic)
            return
        match self._topics.parse(message.topic):
            case ChunkTopic() as topic:
                offices.intake.take_chunk(topic.device_id, topic.update, topic.number, payload)
            case EnrolTopic() as topic:
                offices.admitting.take(topic, message)
            case DeviceTopic() as topic if payload:
                try:
                    await self._hear(topic, message, at)
                except Unproven:
                    offices.admitting.turn_away(topic, message)
                    raise
            case ChallengeTopic() | CoordinatorTopic() if offices.place:
                offices.place.hear(message)

    async def _hear(self, topic: DeviceTopic, message: Message, at: float) -> None:
        """Brings what a device has signed to whom it concerns."""
        offices, device_id, is_retained = self._offices, topic.device_id, message.retained
        seen_at = None if is_retained else at
        match topic:
            case HeaderTopic():
                header = offices.gate.open(topic, message, UpdateHeader, seen_at)
                offices.intake.take_header(device_id, topic.update, header)
            case WantTopic():
                want = offices.gate.open(topic, message, Want, seen_at).record
                await self._serve(device_id, want, at)
            case HelloTopic():
                hello = offices.gate.open(topic, message, Hello, seen_at).record
                offices.arrivals.greet(hello, at, is_retained)
                if not is_retained:
                    offices.admitting.greet(device_id)
            case StateTopic():
                presence = offices.gate.open(topic, message, Presence, seen_at)
                offices.arrivals.observe(device_id, presence, at, is_retained)
            case TelemetryTopic():
                telemetry = offices.gate.open(topic, message, Telemetry, seen_at).record
                self._follow(device_id, telemetry, at)

    def _follow(self, device_id: str, telemetry: Telemetry, at: float) -> None:
        roster, current = self._offices.roster, self._offices.head.version.version
        if not self._offices.allowance.hears_telemetry(device_id):
            return
        roster.follow(device_id, telemetry, at)
        roster.stray(device_id, at if telemetry.base_version > current else None)

    async def _serve(self, device_id: str, want: Want, at: float) -> None:
        """Has the wanted chunks published; where there are none, the device is told what there is instead."""
        offices = self._offices
        if not offices.allowance.serves(device_id, want):
            self._complain(f"{device_id} asks for more than its share of downloads, and waits", "wants")
            return
        if offices.publisher.ask(want):
            offices.roster.stray(device_id, None)
            version = offices.head.standing.newest_with(want.sha256)
            if version is not None:
                offices.roster.hold(device_id, version, at)
            return
        offices.roster.stray(device_id, at)
        if await offices.announcer.repeat(AGAIN_S):
            self._complain(
                f"{device_id} asks for {want.sha256[:16]}…, which is not here; "
                f"version {offices.head.version.version} is announced again",
                "asks for what is not here",
            )


def _fault(error: ProtocolError) -> str:
    return error.reason if isinstance(error, Rejected) else type(error).__name__


def _kind(topic: str) -> str:
    """Returns what came there, of few: whoever may publish makes up names, and each would be told anew."""
    first, *rest = topic.split("/")
    if first == "device":
        return f"device/{rest[1]}" if len(rest) > 1 and rest[1] in DEVICE_KINDS else "device"
    return first if first in ("coordinator", "version", "blob") else "another"
