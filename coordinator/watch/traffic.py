"""Chunks as a sum: one line a transfer while it goes on, not one for each of a thousand chunks."""

from typing import Any, NamedTuple

from coordinator.watch.memory import MOST, Memory, Subject
from coordinator.watch.sighting import Chunk
from coordinator.watch.words import count_chunks, size

QUIET_S = 1.0  # without a chunk: it has ended, or pauses
EVERY_S = 5.0  # of one that goes on


class Transfer(NamedTuple):
    """One side's sending of one thing."""

    fleet: str
    who: str
    subject: Subject


class Count(NamedTuple):
    """What was seen of a transfer since it began."""

    num_chunks: int
    num_bytes: int
    last_at: float
    told_at: float
    told_chunks: int


class Sum(NamedTuple):
    """What is told of a transfer."""

    transfer: Transfer
    text: str
    facts: dict[str, Any]


class Traffic:
    """The transfers under way; times are seconds of any clock."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._counts: dict[Transfer, Count] = {}

    def count(self, chunk: Chunk, now: float) -> Sum | None:
        """Adds a chunk; returns what to tell where it was the last."""
        transfer = Transfer(chunk.fleet, chunk.who, chunk.subject)
        old = self._counts.pop(transfer, Count(0, 0, now, now, 0))
        if len(self._counts) >= MOST:
            del self._counts[next(iter(self._counts))]
        count = old._replace(
            num_chunks=old.num_chunks + 1, num_bytes=old.num_bytes + chunk.num_bytes, last_at=now
        )
        self._counts[transfer] = count
        if count.num_chunks == self._memory.describe(transfer.subject).num_chunks:
            return self._tell(transfer, count, now)
        return None

    def due(self, now: float) -> list[Sum]:
        """Returns what to tell of transfers that pause, or go on for long."""
        moved = [(one, count) for one, count in self._counts.items() if count.num_chunks > count.told_chunks]
        return [
            self._tell(one, count, now)
            for one, count in moved
            if now - count.last_at >= QUIET_S or now - count.told_at >= EVERY_S
        ]

    def _tell(self, transfer: Transfer, count: Count, now: float) -> Sum:
        self._counts[transfer] = count._replace(told_at=now, told_chunks=count.num_chunks)
        known = self._memory.describe(transfer.subject)
        total, sent = known.num_chunks, count_chunks(count.num_chunks)
        if total == count.num_chunks:
            text = f"sent all of {known.text}: {sent}, {size(count.num_bytes)}"
        elif count.num_chunks > total > 0:
            text = f"sent parts of {known.text} again: {sent} of {total}, {size(count.num_bytes)}"
        else:
            of = f" of {total:,}" if total else ""
            text = f"sends {known.text}: {sent}{of}, {size(count.num_bytes)}"
        facts = {
            "of": transfer.subject.kind,
            "name": transfer.subject.name,
            "num_chunks": count.num_chunks,
            "num_bytes": count.num_bytes,
            "total_chunks": total or None,
        }
        return Sum(transfer, text, facts)
