"""Topics of wire version 1, built and parsed here: at most 7 slashes, ids in `[a-z0-9-]`.

What came in is one record for each kind of topic (`parse_topic`). Every id and every number in it is checked,
so whoever matches on the record need not; anybody may publish, and a name is as hostile as a payload.
"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from edge.errors import ProtocolError
from edge.protocol.messages import Id, Sha256, UpdateId

ROOT = "tunefleet/v1"
Digits = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,9})\Z")]  # of a chunk's number


class Topic(Struct, frozen=True):
    """Root of all topics."""

    fleet: Id


class CoordinatorTopic(Topic, frozen=True):
    """`coordinator`: the coordinator's presence, retained."""


class ChallengeTopic(Topic, frozen=True):
    """`coordinator/challenge`: somebody asks who coordinates the fleet."""


class AnswerTopic(Topic, frozen=True):
    """`coordinator/answer`: who coordinates it."""


class VersionTopic(Topic, frozen=True):
    """`version/<tier>`: a manifest, retained."""

    tier: Id


class BlobTopic(Topic, frozen=True):
    """`blob/<sha256>/<n>`: a chunk of a version, or of the base model's sample."""

    sha256: Sha256
    digits: Digits

    @property
    def number(self) -> int:
        """The chunk's."""
        return int(self.digits)


class DeviceTopic(Topic, frozen=True):
    """Root of all topics below `device/<id>`."""

    device_id: Id


class HelloTopic(DeviceTopic, frozen=True):
    """`hello`: a capability card, retained."""


class StateTopic(DeviceTopic, frozen=True):
    """`state`: a device's presence, retained."""


class WantTopic(DeviceTopic, frozen=True):
    """`want`: the chunks that a device asks for."""


class ReceiptTopic(DeviceTopic, frozen=True):
    """`receipt`: what became of an update."""


class TelemetryTopic(DeviceTopic, frozen=True):
    """`telemetry`: progress of the task under way."""


class HeaderTopic(DeviceTopic, frozen=True):
    """`up/<update>/header`: an update's header, before its chunks."""

    update: UpdateId


class ChunkTopic(DeviceTopic, frozen=True):
    """`up/<update>/<n>`: a chunk of an update."""

    update: UpdateId
    digits: Digits

    @property
    def number(self) -> int:
        """The chunk's."""
        return int(self.digits)


OF_DEVICES: dict[str, type[DeviceTopic]] = {
    "hello": HelloTopic,
    "state": StateTopic,
    "want": WantTopic,
    "receipt": ReceiptTopic,
    "telemetry": TelemetryTopic,
}
T = TypeVar("T", bound=Topic)


def parse_topic(name: str) -> Topic:
    """Returns what a message's topic says.

    Raises:
        ProtocolError: It is no topic of this wire, or a name or a number in it is none.
    """
    match name.removeprefix(f"{ROOT}/").split("/") if name.startswith(f"{ROOT}/") else []:
        case [fleet, "coordinator"]:
            return _checked(CoordinatorTopic, fleet)
        case [fleet, "coordinator", "challenge"]:
            return _checked(ChallengeTopic, fleet)
        case [fleet, "coordinator", "answer"]:
            return _checked(AnswerTopic, fleet)
        case [fleet, "version", tier]:
            return _checked(VersionTopic, fleet, tier=tier)
        case [fleet, "blob", sha256, digits]:
            return _checked(BlobTopic, fleet, sha256=sha256, digits=digits)
        case [fleet, "device", device_id, "up", update, "header"]:
            return _checked(HeaderTopic, fleet, device_id=device_id, update=update)
        case [fleet, "device", device_id, "up", update, digits]:
            return _checked(ChunkTopic, fleet, device_id=device_id, update=update, digits=digits)
        case [fleet, "device", device_id, kind] if kind in OF_DEVICES:
            return _checked(OF_DEVICES[kind], fleet, device_id=device_id)
    raise ProtocolError("no topic of this wire")


def _checked(kind: type[T], fleet: str, **levels: Any) -> T:
    try:
        return msgspec.convert({"fleet": fleet, **levels}, kind)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"topic: {error}") from error


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
        """Returns the topic `hello`, `state`, `want`, `receipt` or `telemetry` of a device; `+` means all."""
        return f"{self.root}/device/{device_id}/{kind}"

    def up(self, device_id: str, update: str, part: int | str) -> str:
        """Returns the topic of an update's `header` or of a chunk; `+` in a filter."""
        return f"{self.root}/device/{device_id}/up/{update}/{part}"
