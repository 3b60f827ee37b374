"""Topics of wire version 2, built and parsed here: at most 7 slashes, ids in `[a-z0-9-]`.

What came in is one record for each kind of topic (`parse_topic`). Every id and every number in it is checked,
so whoever matches on the record need not; anybody may publish, and a name is as hostile as a payload.
"""

import re
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from edge.errors import ProtocolError
from edge.protocol.messages import Id, Sha256, UpdateId

ROOT = "tunefleet/v2"
Number = Annotated[int, Meta(ge=0, lt=10**10)]  # of a chunk


class Topic(Struct, frozen=True):
    """Root of all topics."""

    fleet: Id


class CoordinatorTopic(Topic, frozen=True):
    """The coordinator's presence, retained."""


class ChallengeTopic(Topic, frozen=True):
    """Somebody asks who coordinates the fleet."""


class AnswerTopic(Topic, frozen=True):
    """Who coordinates it."""


class VersionTopic(Topic, frozen=True):
    """A manifest, retained."""

    tier: Id


class BlobTopic(Topic, frozen=True):
    """A chunk of a version, or of the base model's sample."""

    sha256: Sha256
    number: Number


class DeviceTopic(Topic, frozen=True):
    """Root of all topics of one device."""

    device_id: Id


class HelloTopic(DeviceTopic, frozen=True):
    """A capability card, retained."""


class StateTopic(DeviceTopic, frozen=True):
    """A device's presence, retained."""


class EnrolTopic(DeviceTopic, frozen=True):
    """A device's claim to a token, or the word of its old key for its new one."""


class AccessTopic(DeviceTopic, frozen=True):
    """Whether the coordinator knows a device."""


class WantTopic(DeviceTopic, frozen=True):
    """The chunks that a device asks for."""


class ReceiptTopic(DeviceTopic, frozen=True):
    """What became of an update."""


class TelemetryTopic(DeviceTopic, frozen=True):
    """Progress of the task under way."""


class DeviceChallengeTopic(DeviceTopic, frozen=True):
    """Somebody asks who lives under a device's name."""


class DeviceAnswerTopic(DeviceTopic, frozen=True):
    """Who lives there."""


class HeaderTopic(DeviceTopic, frozen=True):
    """An update's header, before its chunks."""

    update: UpdateId


class ChunkTopic(DeviceTopic, frozen=True):
    """A chunk of an update."""

    update: UpdateId
    number: Number


FORMS: dict[type[Topic], str] = {  # below ROOT and the fleet's name; what comes most often first
    HeaderTopic: "device/{device_id}/up/{update}/header",  # before all chunks
    ChunkTopic: "device/{device_id}/up/{update}/{number}",
    CoordinatorTopic: "coordinator",
    ChallengeTopic: "coordinator/challenge",
    AnswerTopic: "coordinator/answer",
    VersionTopic: "version/{tier}",
    BlobTopic: "blob/{sha256}/{number}",
    HelloTopic: "device/{device_id}/hello",
    StateTopic: "device/{device_id}/state",
    EnrolTopic: "device/{device_id}/enrol",
    AccessTopic: "device/{device_id}/access",
    WantTopic: "device/{device_id}/want",
    ReceiptTopic: "device/{device_id}/receipt",
    TelemetryTopic: "device/{device_id}/telemetry",
    DeviceChallengeTopic: "device/{device_id}/challenge",
    DeviceAnswerTopic: "device/{device_id}/answer",
}
_PATTERNS = {
    kind: re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", f"{ROOT}/{{fleet}}/{form}"))
    for kind, form in FORMS.items()
}


def parse_topic(name: str) -> Topic:
    """Returns what a message's topic says.

    Raises:
        ProtocolError: It is no topic of this wire, or a name or a number in it is none.
    """
    for kind, pattern in _PATTERNS.items():
        if found := pattern.fullmatch(name):
            try:
                return msgspec.convert(found.groupdict(), kind, strict=False)
            except (msgspec.ValidationError, UnicodeError) as error:
                raise ProtocolError(f"topic: {error}") from error
    raise ProtocolError("no topic of this wire")


class Topics:
    """All topics of one fleet, as they are published and subscribed to.

    Args:
        fleet: The fleet's name, one topic level; `+` in filters for all fleets.
    """

    def __init__(self, fleet: str) -> None:
        self._fleet = fleet
        self.root = f"{ROOT}/{fleet}"
        self.coordinator = f"{self.root}/coordinator"
        self.challenge = f"{self.coordinator}/challenge"
        self.answer = f"{self.coordinator}/answer"

    def parse(self, name: str) -> Topic:
        """Returns what a message's topic says.

        Raises:
            ProtocolError: As `parse_topic`, or it is another fleet's.
        """
        topic = parse_topic(name)
        if topic.fleet != self._fleet:
            raise ProtocolError(f"topic of fleet {topic.fleet}, expected {self._fleet}")
        return topic

    def version(self, tier: str) -> str:
        """Returns the topic of the retained manifest for `tier`."""
        return f"{self.root}/version/{tier}"

    def blob(self, sha256: str, chunk: int | str = "+") -> str:
        """Returns the topic of a chunk of a blob; by default the filter for all of them."""
        return f"{self.root}/blob/{sha256}/{chunk}"

    def device(self, device_id: str, kind: str) -> str:
        """Returns the topic of a device of that kind, such as `hello`; `+` means all."""
        return f"{self.root}/device/{device_id}/{kind}"

    def up(self, device_id: str, update: str, part: int | str) -> str:
        """Returns the topic of an update's `header` or of a chunk; `+` in a filter."""
        return f"{self.root}/device/{device_id}/up/{update}/{part}"
