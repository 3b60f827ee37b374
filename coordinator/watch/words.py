"""Every kind of control message as half a sentence, which who sent it begins.

At 80 columns 58 are left for it: what matters stands first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coordinator.watch.memory import Memory, Subject
from edge.protocol.enrolment import AccessNotice, Enrol
from edge.protocol.messages import (
    Answer,
    Challenge,
    Hello,
    Manifest,
    Presence,
    Range,
    Receipt,
    Telemetry,
    UpdateHeader,
    Want,
)

Words = Callable[[Any, Memory, str], str]


def size(num_bytes: int) -> str:
    """Writes a size as `27.6 KB`."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    amount = num_bytes / 1000
    for unit in ("KB", "MB"):
        if amount < 1000:
            return f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} GB"


def count_chunks(number: int) -> str:
    """Writes a number of chunks as `1 chunk`, `2 chunks`."""
    return f"{number:,} chunk{'s' * (number != 1)}"


def _presence(record: Presence, _: Memory, __: str) -> str:
    return "is online" if record.online else "is offline"


def _challenge(record: Challenge, _: Memory, __: str) -> str:
    return "asks who coordinates this fleet"


def _own_challenge(record: Challenge, _: Memory, __: str) -> str:
    return "asks whether a copy of it is there"


def _answer(record: Answer, _: Memory, __: str) -> str:
    return f"answers from host {record.host or '?'}: at version {record.version}"


def _own_answer(record: Answer, _: Memory, __: str) -> str:
    return f"answers a copy of it from host {record.host or '?'}"


def _hello(record: Hello, _: Memory, __: str) -> str:
    speed = f", {record.tokens_per_s:,.0f} tokens/s" if record.tokens_per_s else ""
    rank = max(record.ranks, default=0)
    return f"says hello: {record.backend}, rank {rank} at most, {size(record.memory_bytes)}{speed}"


def _version(record: Manifest, _: Memory, __: str) -> str:
    recipe = record.recipe
    bound = f"{recipe.steps} steps" if recipe.steps else f"{recipe.seconds:g} s"
    parent = f", from {record.parent}" if record.parent is not None else ""
    offer = f"offers version {record.version}{parent}"
    privacy = f"; hides each {record.privacy.unit}" if record.privacy.is_on else ""
    sealing = "" if record.seal else "; updates are not sealed"
    return (
        f"{offer}: rank {record.rank}, {size(record.size_bytes)}; {bound} at {recipe.lr:g}{privacy}{sealing}"
    )


def _want(record: Want, memory: Memory, __: str) -> str:
    known = memory.describe(Subject("blob", record.sha256))
    return f"asks for {known.text}: chunks {_ranges(record.ranges)}{_of(known.num_chunks)}"


def _header(record: UpdateHeader, _: Memory, __: str) -> str:
    return (
        f"update {record.update[:8]} on version {record.base_version}: {size(record.size_bytes)}, "
        f"{_facts(record)}, {record.encoding}"
    )


def _facts(header: UpdateHeader) -> str:
    if header.is_sealed:
        return "sealed"
    if header.loss_before is None or header.loss_after is None:
        return "loss untold"
    return f"loss {header.loss_before:.2f} to {header.loss_after:.2f}, {header.num_examples:,} examples"


def _receipt(record: Receipt, memory: Memory, device: str) -> str:
    update = f"update {record.update[:8]} of {device}"
    if record.status == "accepted":
        return f"accepted {update}"
    if record.status == "rejected":
        why = ": ".join(filter(None, (record.reason, record.detail)))
        return f"rejected {update}: {why or 'no reason given'}"
    if record.status == "busy":
        return f"has no room for {update} now"
    total = memory.describe(Subject("update", record.update)).num_chunks
    return f"lacks chunks {_ranges(record.missing)}{_of(total)} of {update}"


def _telemetry(record: Telemetry, _: Memory, __: str) -> str:
    of = f"/{record.steps}" if record.steps else ""
    loss = "" if record.loss is None else f"loss {record.loss:.2f}, "
    return (
        f"trains on version {record.base_version}: step {record.step}{of}, "
        f"{loss}{record.tokens_per_s:,.0f} tokens/s"
    )


def _enrol(record: Enrol, _: Memory, __: str) -> str:
    if record.claim:
        return f"shows a token of coordinator {record.claim.grant.coordinator[:16]}…"
    return f"tells of {len(record.rotations)} change{'s' * (len(record.rotations) != 1)} of its key"


def _access(record: AccessNotice, _: Memory, device: str) -> str:
    news = f": {record.news}" if record.news else ""
    return f"tells {device} that its key {record.key[:16]}… is {record.standing}{news}"


WORDS: Mapping[str, Words] = {
    "coordinator": _presence,
    "challenge": _challenge,
    "answer": _answer,
    "own challenge": _own_challenge,
    "own answer": _own_answer,
    "version": _version,
    "hello": _hello,
    "state": _presence,
    "want": _want,
    "header": _header,
    "receipt": _receipt,
    "telemetry": _telemetry,
    "enrol": _enrol,
    "access": _access,
}


def _ranges(ranges: Sequence[Range]) -> str:
    spans = [str(first) if end - first <= 1 else f"{first}-{end - 1}" for first, end in ranges]
    return ", ".join(spans) or "none"


def _of(total: int) -> str:
    return f" of {total}" if total else ""
