"""A valid input made hostile: bytes anywhere, or values and fields of what it holds.

The random generator is handed in: the same seed gives the same inputs.
"""

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Literal, NamedTuple

from benchmarks.faults.fuzz.nasties import any_bytes, any_json, any_toml

Form = Literal["bytes", "json", "lines", "toml", "tensors", "gguf"]
HEADER_BYTES = 4096  # of a GGUF file: behind it lie values, which may be any


class Written(NamedTuple):
    """A value as it is to stand in the text, whatever it is."""

    text: str


class Pairs(list[tuple[str, Any]]):
    """An object, which may bear a name twice."""


def mutate(content: bytes, form: Form, random: Random, others: Sequence[bytes]) -> bytes:
    """Returns `content` with a few faults in it.

    Args:
        content: A valid input.
        form: How it is built, so that a fault can lie deep inside.
        random: Draws what and where.
        others: Further valid inputs, to be mixed with.
    """
    if form == "bytes" or random.random() < 0.25:
        return mutate_bytes(content, random, others, len(content))
    return _MUTATIONS[form](content, random, others)


def mutate_bytes(content: bytes, random: Random, others: Sequence[bytes], reach: int) -> bytes:
    """Changes bytes among the first `reach`, one to four times."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(min(len(changed), reach) + 1)
        match random.randrange(8):
            case 0 if changed and at < len(changed):
                changed[at] ^= 1 << random.randrange(8)
            case 1 if at < len(changed):
                changed[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5B, 0x7B))
            case 2:
                changed[at : at + random.choice((0, 1, 4, 8))] = any_bytes(random)
            case 3:
                del changed[at : at + random.choice((1, 2, 8, 64))]
            case 4:
                del changed[at:]
            case 5:
                end = at + random.randrange(64)
                changed[at:at] = changed[at:end]
            case 6 if others:
                other = random.choice(others)
                changed[at:] = other[random.randrange(len(other) + 1) :]
            case _:
                width = random.choice((1, 2, 4, 8))
                value = random.choice(
                    (0, 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1, random.getrandbits(16))
                )
                changed[at : at + width] = (value % (1 << (8 * width))).to_bytes(width, "little")
    return bytes(changed)


def _json(content: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    root: list[Any] = [json.loads(content, object_pairs_hook=Pairs)]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        _change(root, random)
    return _dumped(root[0]).encode("utf-8", "surrogatepass")


def _lines(content: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    lines = content.split(b"\n")
    at = random.randrange(len(lines))
    try:
        lines[at] = _json(lines[at], random, others)
    except ValueError:
        lines[at] = any_bytes(random)
    return b"\n".join(lines)


def _toml(content: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    lines = content.decode().split("\n")
    at = random.randrange(len(lines))
    name, is_value, _value = lines[at].partition("=")
    match random.randrange(4):
        case 0:
            lines.insert(at, f"{random.choice(('x', 'a.b', 'recipe', name or 'y'))} = {any_toml(random)}")
        case 1:
            lines.insert(at, random.choice(("[[a]]", "[recipe]", "[devices]", "[stages]", "[x.y.z]")))
        case _ if is_value:
            lines[at] = f"{name}= {any_toml(random)}"
        case _:
            del lines[at]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _tensors(content: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Changes the header of a safetensors file; its length still fits, mostly."""
    length = int.from_bytes(content[:8], "little")
    header = _json(content[8 : 8 + length].rstrip(), random, others)
    told = len(header) if random.random() < 0.9 else random.choice((0, 1, len(content), 2**63))
    return told.to_bytes(8, "little") + header + content[8 + length :]


def _gguf(content: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    return mutate_bytes(content, random, others, HEADER_BYTES)


_MUTATIONS: dict[str, Callable[[bytes, Random, Sequence[bytes]], bytes]] = {
    "json": _json,
    "lines": _lines,
    "toml": _toml,
    "tensors": _tensors,
    "gguf": _gguf,
}


def _change(root: list[Any], random: Random) -> None:
    """Changes one value, name or entry, anywhere below `root`."""
    holder, index = _place(root, random)
    is_object = isinstance(holder, Pairs)
    name, value = holder[index] if is_object else ("", holder[index])
    match random.randrange(8):
        case 0 if holder is not root:
            del holder[index]
        case 1 if is_object:
            holder.insert(random.randrange(len(holder) + 1), (name, Written(any_json(random))))
        case 2 if is_object:
            renamed = random.choice(("", "a", f"{name}x", "\ud800", "x" * 5000, "__class__", name.upper()))
            holder[index] = (renamed, value)
        case 3:
            wrapped = [value] if random.random() < 0.5 else Pairs([("a", value)])
            holder[index] = (name, wrapped) if is_object else wrapped
        case 4 if isinstance(value, str):
            text = mutate_bytes(value.encode("utf-8", "surrogatepass"), random, (), len(value))
            changed = text.decode("utf-8", "surrogateescape")
            holder[index] = (name, changed) if is_object else changed
        case _:
            nasty = Written(any_json(random))
            holder[index] = (name, nasty) if is_object else nasty


def _place(root: list[Any], random: Random) -> tuple[Any, int]:
    """Walks down to a random value; gives what holds it, and where."""
    holder, index = root, 0
    while True:
        inner = holder[index][1] if isinstance(holder, Pairs) else holder[index]
        if not isinstance(inner, list) or not inner or random.random() < 0.15:
            return holder, index
        holder, index = inner, random.randrange(len(inner))


def _dumped(value: Any) -> str:
    if isinstance(value, Written):
        return value.text
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(name)}:{_dumped(entry)}" for name, entry in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_dumped, value)) + "]"
    return json.dumps(value)
