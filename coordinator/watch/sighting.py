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
from edge.protocol.messages import (
    Answer,
    Challenge,
    Hello,
    Id,
    Manifest,
    Presence,
    Receipt,
    Signed,
    Telemetry,
    UpdateHeader,
    Want,
    decode_message,
)
from edge.protocol.signing import open_signed
from edge.protocol.topics import ROOT
from edge.transport.base import Message

Signature = Literal["valid", "invalid", "missing", "other-key"]
COORDINATOR, NOBODY = "*coordinator", "*somebody"  # no device can be called so: ids hold no *
KINDS: dict[str, tuple[type[Struct], bool]] = {  # record, and whether it must be signed
    "coordinator": (Presence, False),
    "challenge": (Challenge, False),
    "answer": (Answer, True),
    "version": (Manifest, True),
    "hello": (Hello, True),
    "state": (Presence, False),
    "want": (Want, False),
    "header": (UpdateHeader, True),
    "receipt": (Receipt, True),
    "telemetry": (Telemetry, False),
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
        kind: A key of `KINDS`, or `unknown`.
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
    """What a message is; `memory` is what earlier ones told, and learns from it."""
    try:
        return _read(message, memory)
    except (EdgeError, ValueError, msgspec.MsgspecError) as error:
        fleet = message.topic.removeprefix(f"{ROOT}/").split("/")[0]
        text = f"{message.topic}: {len(message.payload)} bytes not understood: {error}"
        return Sighting(fleet, "", "unknown", text, message.topic, message.retained)


def _read(message: Message, memory: Memory) -> Sighting | Chunk:
    levels = message.topic.removeprefix(f"{ROOT}/").split("/")
    match levels:
        case [fleet, "blob", sha256, number]:
            return _chunk(fleet, COORDINATOR, Subject("blob", sha256), number, message)
        case [fleet, "device", device, "up", update, number] if number != "header":
            return _chunk(fleet, device, Subject("update", update), number, message)
        case [fleet, "device", device, "up", _, "header"]:
            return _control(fleet, device, "header", message, memory)
        case [fleet, "device", device, "receipt"]:
            return _control(fleet, COORDINATOR, "receipt", message, memory, about=device)
        case [fleet, "device", device, kind] if kind in KINDS:
            return _control(fleet, device, kind, message, memory)
        case [fleet, "coordinator", "challenge"]:
            return _control(fleet, NOBODY, "challenge", message, memory)
        case [fleet, "coordinator", "answer"]:
            return _control(fleet, COORDINATOR, "answer", message, memory)
        case [fleet, "coordinator"] | [fleet, "version", _]:
            return _control(fleet, COORDINATOR, levels[1], message, memory)
    raise ValueError("no topic of the wire")


def _chunk(fleet: str, who: str, subject: Subject, number: str, message: Message) -> Chunk:
    _check_names(fleet, who)
    int(number)
    return Chunk(fleet, who, subject, len(message.payload))


def _control(fleet: str, who: str, kind: str, message: Message, memory: Memory, about: str = "") -> Sighting:
    _check_names(fleet, who)
    if not message.payload:
        text = f"takes its {kind} back"
        return Sighting(fleet, who, kind, text, message.topic, message.retained)
    record_kind, must_be_signed = KINDS[kind]
    record, found = _open(message.payload, record_kind, lambda key: memory.is_known(fleet, who, key))
    signature = None if found == "missing" and not must_be_signed else found
    if signature == "valid":
        memory.learn(record)
    text = WORDS[kind](record, memory, about)
    told = msgspec.to_builtins(record)
    return Sighting(fleet, who, kind, text, message.topic, message.retained, signature, told)


def _open(payload: bytes, kind: type[Struct], is_known: Callable[[str], bool]) -> tuple[Struct, Signature]:
    """The record and what stands behind it; a bad signature hides nothing."""
    try:
        signed = decode_message(payload, Signed)
    except EdgeError:
        return decode_message(payload, kind), "missing"
    record = decode_message(bytes(signed.body), kind)
    try:
        open_signed(payload, kind)
    except EdgeError:
        return record, "invalid"
    return record, "valid" if is_known(signed.key) else "other-key"


def _check_names(fleet: str, who: str) -> None:
    msgspec.convert(fleet, Id)
    if who not in (COORDINATOR, NOBODY):
        msgspec.convert(who, Id)
