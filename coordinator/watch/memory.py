"""What a watcher remembers, so that later messages read well: keys, versions by hash, updates by id.

Everybody who may publish can make it remember something, so each table is bounded: the oldest entry goes.
"""

from typing import Literal, NamedTuple, TypeVar

from msgspec import Struct

from edge.protocol.chunks import num_chunks
from edge.protocol.messages import Manifest, UpdateHeader

MOST = 1000


class Subject(NamedTuple):
    """What is transferred."""

    kind: Literal["blob", "update"]
    name: str  # sha256, or the update's id


class Known(NamedTuple):
    """What a transfer is of."""

    text: str
    num_chunks: int


Key = TypeVar("Key")
Value = TypeVar("Value")


class Memory:
    """Of one watcher."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str], str] = {}
        self._subjects: dict[Subject, Known] = {}

    def is_known(self, fleet: str, who: str, key: str) -> bool:
        """Tells whether a sender signs as before; its first key is taken as its own."""
        return _put_if_new(self._keys, (fleet, who), key) == key

    def learn(self, record: Struct) -> None:
        """Takes what a message tells of transfers to come."""
        if isinstance(record, Manifest):
            blobs = [(record.sha256, record.size_bytes, f"version {record.version}")]
            if record.sketch:
                blobs.append((record.sketch.sha256, record.sketch.size_bytes, "the base model's sample"))
            for sha256, size_bytes, text in blobs:
                known = Known(text, num_chunks(size_bytes, record.chunk_bytes))
                _put_if_new(self._subjects, Subject("blob", sha256), known)
        if isinstance(record, UpdateHeader):
            known = Known(f"update {record.update[:8]}", num_chunks(record.size_bytes, record.chunk_bytes))
            _put_if_new(self._subjects, Subject("update", record.update), known)

    def describe(self, subject: Subject) -> Known:
        """Returns what is known of a transfer; 0 chunks where it is not known how many there are."""
        short = f"update {subject.name[:8]}" if subject.kind == "update" else f"blob {subject.name[:8]}…"
        return self._subjects.get(subject, Known(short, 0))


def _put_if_new(table: dict[Key, Value], key: Key, value: Value) -> Value:
    if key not in table and len(table) >= MOST:
        del table[next(iter(table))]
    return table.setdefault(key, value)
