"""Brings every message to whom it concerns; none ends the loop: bad ones are dropped, and said so."""

from collections.abc import Callable
from typing import NamedTuple

from coordinator.announcing import Announcer
from coordinator.events.telling import Complaints
from coordinator.intake.arrivals import Arrivals
from coordinator.intake.roster import Roster
from coordinator.intake.updates import NOT_RECEIPTED, Intake
from coordinator.ledger.head import Head
from coordinator.place import Place
from edge.delivery.publisher import Publisher
from edge.errors import DiskRefused, ProtocolError
from edge.protocol.messages import Telemetry, Want, decode_message
from edge.protocol.topics import (
    ChallengeTopic,
    ChunkTopic,
    CoordinatorTopic,
    HeaderTopic,
    HelloTopic,
    StateTopic,
    TelemetryTopic,
    Topics,
    WantTopic,
)
from edge.transport.base import Message, Transport

AGAIN_S = 5.0  # at the earliest, the version is announced to a device that asks for what is not here


class Offices(NamedTuple):
    """Whom messages concern."""

    intake: Intake
    arrivals: Arrivals
    roster: Roster
    publisher: Publisher
    announcer: Announcer
    head: Head
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
        for kind in ("hello", "state", "want", "telemetry", "up/+/+"):
            await self._transport.subscribe(self._topics.device("+", kind))
        for topic in (self._topics.coordinator, self._topics.challenge) if self._offices.place else ():
            await self._transport.subscribe(topic)

    async def run(self) -> None:
        """Takes messages until the transport is left."""
        async for message in self._transport.messages():
            try:
                await self._receive(message)
            except ProtocolError as error:
                topic = message.topic.removeprefix(f"{self._topics.root}/")[:200]
                self._complain(f"{topic}: {error}"[:500])
            except (DiskRefused, OSError) as error:
                self._complain(f"{error}; {NOT_RECEIPTED}")

    async def _receive(self, message: Message) -> None:
        offices, at, payload = self._offices, self._clock(), message.payload
        match self._topics.parse(message.topic):
            case HeaderTopic() as topic:
                offices.intake.take_header(topic.device_id, topic.update, payload)
            case ChunkTopic() as topic:
                offices.intake.take_chunk(topic.device_id, topic.update, topic.number, payload)
            case WantTopic() as topic:
                await self._serve(topic.device_id, decode_message(payload, Want), at)
            case HelloTopic() as topic if payload:
                offices.arrivals.greet(topic.device_id, message, at)
            case StateTopic() as topic if payload:
                offices.arrivals.observe(topic.device_id, message, at)
            case TelemetryTopic() as topic:
                self._follow(topic.device_id, decode_message(payload, Telemetry), at)
            case ChallengeTopic() if offices.place:
                answer = offices.place.answer(payload, offices.head.version.version)
                await self._transport.publish(self._topics.answer, answer)
            case CoordinatorTopic() if offices.place and payload:
                offices.place.hear(payload)

    def _follow(self, device_id: str, telemetry: Telemetry, at: float) -> None:
        roster, current = self._offices.roster, self._offices.head.version.version
        roster.follow(device_id, telemetry, at)
        roster.stray(device_id, at if telemetry.base_version > current else None)

    async def _serve(self, device_id: str, want: Want, at: float) -> None:
        """Has the wanted chunks published; where there are none, the device is told what there is instead."""
        offices = self._offices
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
                f"version {offices.head.version.version} is announced again"
            )
