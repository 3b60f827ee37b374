"""All that happened in a run, in the order in which the laboratory heard of it: one JSON line each.

The audit reads nothing but this file, the settings beside it and the state folders, so a run can be audited
again, and a copy of it be damaged to see whether the audit finds that.

    run.json       the settings, the schedule among them
    record.jsonl   what happened
    base/, data.jsonl, coordinator/, devices/<name>/, broker/, kept/ (payloads as they were spooled)
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from benchmarks.faults.schedule import Fault, Wish

SETTINGS, RECORD, KEPT = "run.json", "record.jsonl", "kept"
LABORATORY = "laboratory"
FLEET = "lab"
UNINTERESTING = frozenset({"downloading", "training", "debug"})  # many, and nothing is decided by them


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """How small a broker is; 0 leaves Mosquitto's own."""

    persistence: bool = True
    max_inflight_messages: int = 0
    max_queued_messages: int = 0
    message_size_limit: int = 0
    memory_limit: int = 0


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """What makes a run."""

    wish: Wish
    faults: tuple[Fault, ...]
    limits: Limits = Limits()
    cut_bytes: tuple[int, int] = (0, 0)  # every connection of a device breaks after so many bytes; 0: none
    cuts: int = 0  # until so many are cut
    bound_s: float = 60.0  # within which every device goes on after the last fault
    patience_s: float = 2.0  # of devices
    dim: int = 128  # of the toy base; with rank 16 an update has 66 kB, two chunks; with 64 it is half
    rank: int = 16
    attempts: int = 2
    steps: int = 2
    slowdown: float = 1.0


class Entry(Struct, frozen=True):
    """One thing that happened."""

    at_s: float  # since the run began, by the laboratory's monotonic clock
    who: str  # a program's name, or `laboratory`
    event: str
    facts: dict[str, Any] = {}


class Recorder:
    """Writes the record.

    Args:
        folder: Of the run.
        clock: Seconds of any beginning.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = (folder / RECORD).open("ab", buffering=0)
        self._clock = clock
        self._began = clock()
        self._listeners: list[Callable[[Entry], None]] = []

    def listen(self, listener: Callable[[Entry], None]) -> None:
        """Tells everything to one more listener."""
        self._listeners.append(listener)

    @property
    def now_s(self) -> float:
        """Returns how long the run has been going on."""
        return self._clock() - self._began

    def note(self, who: str, event: str, /, **facts: Any) -> None:
        """Writes one thing down; any thread may."""
        entry = Entry(round(self.now_s, 4), who, event, facts)
        self._file.write(msgspec.json.encode(entry) + b"\n")
        for listener in self._listeners:
            listener(entry)

    def hear(self, who: str, line: bytes) -> None:
        """Writes down what a program said: an event as JSON, or anything else."""
        try:
            said = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            self.note(who, "said", text=line.decode(errors="replace").rstrip())
            return
        event = str(said.pop("event", "said"))
        if event not in UNINTERESTING:
            self.note(who, event, **{name: value for name, value in said.items() if name != "level"})

    def close(self) -> None:
        """Ends the record."""
        self._file.close()


def read_record(folder: Path) -> list[Entry]:
    """Reads a run's record; a last line that was cut off is left out."""
    lines = (folder / RECORD).read_bytes().split(b"\n")[:-1]
    return [msgspec.json.decode(line, type=Entry) for line in lines]


def read_settings(folder: Path) -> Settings:
    """Reads a run's settings."""
    return msgspec.json.decode((folder / SETTINGS).read_bytes(), type=Settings)


def write_settings(folder: Path, settings: Settings) -> None:
    """Writes a run's settings."""
    (folder / SETTINGS).write_bytes(msgspec.json.format(msgspec.json.encode(settings), indent=1))
