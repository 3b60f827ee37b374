"""The wire: every record, signed and bare, topics, payloads, and what a watcher makes of any of it."""

import hashlib
import inspect as python_inspect
from collections.abc import Iterator
from random import Random
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import inspect

from benchmarks.faults.fuzz.target import Target
from converters.adapter import Factors, LoraAdapter
from coordinator.watch.memory import Memory
from coordinator.watch.show import as_json, lines
from coordinator.watch.sighting import Sighting, sight
from coordinator.watch.traffic import Traffic
from edge.choices import EncodingName
from edge.protocol import enrolment, messages
from edge.protocol.codec import decode_adapter, encode_adapter
from edge.protocol.merkle import Tree, proven_chunk
from edge.protocol.messages import Record, decode_message, encode_message
from edge.protocol.sealing import Context, open_update, seal_update, sealing_public_key
from edge.protocol.signing import Keyring, Signer, read_signed
from edge.protocol.topics import FORMS, ROOT, parse_topic
from edge.transport.base import Message

ENCODINGS: tuple[EncodingName, ...] = ("f32", "f16", "int8", "int4")
_TEXTS = ("lamp", "a" * 64, "b" * 32, "c" * 128, "r8")  # of each pattern on the wire


def targets() -> Iterator[Target]:
    """Lists the wire's decoders."""
    kinds = [
        kind
        for room in (messages, enrolment)
        for _, kind in python_inspect.getmembers(room, python_inspect.isclass)
        if issubclass(kind, Record) and kind is not Record
    ]
    samples = {kind: encode_message(sample(kind)) for kind in dict.fromkeys(kinds)}
    for kind, content in samples.items():
        seeds = [content, encode_message(sample(kind, is_full=True))]
        yield Target(
            f"wire/{kind.__name__.lower()}",
            "json",
            seeds,
            lambda payload, kind=kind: decode_message(payload, kind),
            30,
        )
    names = [_topic(form) for form in FORMS.values()]
    yield Target("wire/topic", "bytes", [name.encode() for name in names], _parse, 100)
    yield Target("wire/watched", "json", list(samples.values()), _Watched(names), 60)
    yield from _sealed_targets()
    tree = Tree([bytes([number]) * 100 for number in range(7)])
    chunk = tree.proof(3) + bytes([3]) * 100
    yield Target("wire/chunk", "bytes", [chunk], lambda message: proven_chunk(message, 3, 7, tree.root), 60)
    like = _adapter()
    payloads = [encode_adapter(like, encoding) for encoding in ENCODINGS]
    yield Target("wire/payload", "tensors", payloads, lambda payload: decode_adapter(payload, like=like), 60)


def _sealed_targets() -> Iterator[Target]:
    """Lists what opens envelopes and sealed updates, whose contents are signed and sealed as is due."""
    key, topic = bytes(range(32)), f"{ROOT}/home/device/lamp/hello"
    envelope = Signer(key, 7).seal(topic, sample(messages.Hello))

    def open_envelope(payload: bytes) -> None:
        Keyring().open(topic, read_signed(payload), messages.Hello)

    yield Target("wire/envelope", "json", [envelope], open_envelope, 20)
    context = Context("home", "lamp", 1, 0, "a" * 64)
    facts = messages.Facts(num_examples=1, num_tokens=2, num_steps=3, seconds=1.0)
    update = seal_update(facts, bytes(100), sealing_public_key(key), context)
    yield Target("wire/sealed", "bytes", [update], lambda payload: open_update(payload, key, context), 10)


def sample(kind: type[msgspec.Struct], *, is_full: bool = False) -> Any:
    """Builds a valid record: the fields that must be there, or all of them."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    fields = {
        field.encode_name: _value(field.type, is_full) for field in info.fields if field.required or is_full
    }
    return msgspec.convert(fields, kind)


def _value(info: inspect.Type, is_full: bool) -> Any:
    match info:
        case inspect.StrType(pattern=pattern):
            return next(text for text in ("text", *_TEXTS) if not pattern or _fits(pattern, text))
        case inspect.IntType(ge=least):
            return max(least or 0, 4096 if (least or 0) > 100 else 1)
        case inspect.FloatType():
            return 0.5
        case inspect.BoolType():
            return True
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.TupleType(item_types=kinds):
            return [_value(one, is_full) for one in kinds]
        case inspect.VarTupleType(item_type=one) | inspect.ListType(item_type=one):
            return [_value(one, is_full)]
        case inspect.StructType(cls=kind):
            return msgspec.to_builtins(sample(kind, is_full=is_full))
        case inspect.UnionType(types=kinds):
            return _value(next(one for one in kinds if not isinstance(one, inspect.NoneType)), is_full)
        case inspect.RawType():
            return msgspec.Raw(b'{"online":true}')
        case inspect.BytesType():
            return "AAAA"
        case inspect.DictType(key_type=key, value_type=entry):
            return {_value(key, is_full): _value(entry, is_full)}
    raise TypeError(f"no sample of {info}")


def _fits(pattern: str, text: str) -> bool:
    try:
        msgspec.convert(text, Annotated[str, msgspec.Meta(pattern=pattern)])
    except msgspec.ValidationError:
        return False
    return True


def _topic(form: str) -> str:
    placed = form.format(tier="r8", sha256="a" * 64, number="7", device_id="lamp", update="b" * 32)
    return f"{ROOT}/home/{placed}"


def _parse(content: bytes) -> None:
    parse_topic(content.decode("utf-8", "surrogateescape"))


def _adapter() -> LoraAdapter:
    random = np.random.default_rng(0)
    return LoraAdapter(
        {
            f"model.layers.{n}.self_attn.q_proj": Factors(
                random.normal(size=(2, 70)).astype(np.float32),
                random.normal(size=(66, 2)).astype(np.float32),
                2.0,
            )
            for n in range(2)
        }
    )


class _Watched:
    """A watcher that is shown a payload under one topic after the other: a line, and JSON."""

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics
        self._memory = Memory()
        self._traffic = Traffic(self._memory)
        self._line = lines(80, names_fleet=True)

    def __call__(self, payload: bytes) -> None:
        at = Random(hashlib.sha256(payload).digest()).randrange(len(self._topics))
        seen = sight(Message(self._topics[at], payload), self._memory)
        told = seen if isinstance(seen, Sighting) else self._traffic.count(seen, 0.0)
        if told is not None:
            self._line(told)
            as_json(told)
