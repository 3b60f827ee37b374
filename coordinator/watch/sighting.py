"""One message on the wire as a watcher sees it: who says what, and whether a key stands behind it.

All of it may be hostile: names that are none, JSON that is none, another's signature, terminal escapes in a
text. What cannot be understood is a sighting too, and says why; nothing is left out and nothing raises.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

from coordinator.watch.memory import Memory, Subject
from coordinator.watch.words import WORDS
from edge.errors import EdgeError
from edge.protocol.enrolment import AccessNotice, Enrol
from edge.protocol.messages import (
    Answer,
    Challenge,
    Hello,
    Manifest,
    Presence,
    Receipt,
    Telemetry,
    UpdateHeader,
    Want,
    decode_message,
)
from edge.protocol.signing import Keyring, read_signed
from edge.protocol.topics import (
    ROOT,
    AccessTopic,
    AnswerTopic,
    BlobTopic,
    ChallengeTopic,
    ChunkTopic,
    CoordinatorTopic,
    DeviceAnswerTopic,
    DeviceChallengeTopic,
    DeviceTopic,
    EnrolTopic,
    HeaderTopic,
    HelloTopic,
    ReceiptTopic,
    StateTopic,
    TelemetryTopic,
    Topic,
    VersionTopic,
    WantTopic,
    parse_topic,
)
from edge.transport.base import Message

Signature = Literal["valid", "invalid", "missing", "other-key"]
COORDINATOR, NOBODY = "*coordinator", "*somebody"  # no device can be called so: ids hold no *
KINDS: dict[type[Topic], tuple[str, type[Struct], bool]] = {  # what comes there, must it be signed
    CoordinatorTopic: ("coordinator", Presence, True),
    ChallengeTopic: ("challenge", Challenge, False),
    AnswerTopic: ("answer", Answer, True),
    DeviceChallengeTopic: ("own challenge", Challenge, False),
    DeviceAnswerTopic: ("own answer", Answer, True),
    VersionTopic: ("version", Manifest, True),
    HelloTopic: ("hello", Hello, True),
    StateTopic: ("state", Presence, True),
    WantTopic: ("want", Want, True),
    HeaderTopic: ("header", UpdateHeader, True),
    ReceiptTopic: ("receipt", Receipt, True),
    TelemetryTopic: ("telemetry", Telemetry, True),
    EnrolTopic: ("enrol", Enrol, True),
    AccessTopic: ("access", AccessNotice, True),
}
SENDERS: dict[type[Topic], str] = {
    CoordinatorTopic: COORDINATOR,
    ChallengeTopic: NOBODY,
    AnswerTopic: COORDINATOR,
    VersionTopic: COORDINATOR,
}


class Chunk(NamedTuple):
    """A piece of a transfer: only its number and size are of interest."""

    fleet: str
    who: str
    subject: Subject
    num_bytes: int


class Sighting(NamedTuple):
    """A control message.

    Attributes:
        fleet: As in its topic.
        who: `*coordinator`, the device's id, or `*somebody` who may be either; empty where the topic is none
            of the wire's.
        kind: What comes there, as in `KINDS`, or `unknown`.
        text: What it says.
        topic: Where it came.
        is_retained: The broker had kept it.
        signature: `missing` where there should be one, `other-key` where the sender had another before; None
            where messages of the kind bear none.
        message: The record as JSON has it.
    """

    fleet: str
    who: str
    kind: str
    text: str
    topic: str
    is_retained: bool
    signature: Signature | None = None
    message: dict[str, Any] | None = None


def sight(message: Message, memory: Memory) -> Sighting | Chunk:
    """Returns what a message is; `memory` is what earlier ones told, and learns from it."""
    try:
        return _read(message, memory)
    except EdgeError as error:
        fleet = message.topic.removeprefix(f"{ROOT}/").split("/")[0]
        text = f"{message.topic}: {len(message.payload)} bytes not understood: {error}"
        return Sighting(fleet, "", "unknown", text, message.topic, message.retained)


def _read(message: Message, memory: Memory) -> Sighting | Chunk:
    match parse_topic(message.topic):
        case BlobTopic() as topic:
            return Chunk(topic.fleet, COORDINATOR, Subject("blob", topic.sha256), len(message.payload))
        case ChunkTopic() as topic:
            return Chunk(topic.fleet, topic.device_id, Subject("update", topic.update), len(message.payload))
        case ReceiptTopic() | AccessTopic() as topic:
            return _control(topic, COORDINATOR, message, memory, about=topic.device_id)
        case DeviceTopic() as topic:
            return _control(topic, topic.device_id, message, memory)
        case topic:
            return _control(topic, SENDERS[type(topic)], message, memory)


def _control(topic: Topic, who: str, message: Message, memory: Memory, about: str = "") -> Sighting:
    fleet, (kind, record_kind, must_be_signed) = topic.fleet, KINDS[type(topic)]
    if not message.payload:
        text = f"takes its {kind} back"
        return Sighting(fleet, who, kind, text, message.topic, message.retained)
    record, found = _open(message, record_kind, lambda key: memory.is_known(fleet, who, key))
    signature = None if found == "missing" and not must_be_signed else found
    if signature == "valid":
        memory.learn(record)
    text = WORDS[kind](record, memory, about)
    told = msgspec.to_builtins(record)
    return Sighting(fleet, who, kind, text, message.topic, message.retained, signature, told)


def _open(message: Message, kind: type[Struct], is_known: Callable[[str], bool]) -> tuple[Struct, Signature]:
    """Returns the record and what stands behind it; a bad signature hides nothing."""
    try:
        signed = read_signed(message.payload)
    except EdgeError:
        return decode_message(message.payload, kind), "missing"
    record = decode_message(bytes(signed.body), kind)
    try:
        Keyring().open(message.topic, signed, kind)
    except EdgeError:
        return record, "invalid"
    return record, "valid" if is_known(signed.key) else "other-key"
