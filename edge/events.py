"""What a client tells about itself, and how it is shown: lines, JSON lines, or a bar on a terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TextIO

import msgspec

EventKind = Literal[
    "joined",
    "waiting",
    "proved",  # the base model is a copy of the fleet's
    "downloading",  # repeated, with `done` and `total` in chunks
    "training",  # repeated, with `done` and `total` in steps (0: bounded by time)
    "trained",
    "spooled",
    "accepted",
    "rejected",
    "warning",
    "stopped",
]
_REPEATED = ("downloading", "training")
PLAIN_EVERY_S = 10.0


class Event(NamedTuple):
    """One thing that happened."""

    kind: EventKind
    text: str
    facts: dict[str, Any]  # JSON values, units at the end of their names


Show = Callable[[Event], None]


@contextmanager
def shown(as_json: bool, out: TextIO | None = None) -> Iterator[Show]:
    """How events are shown on `out`, standard output by default.

    Args:
        as_json: One JSON object a line, every event; else lines for people, or a bar on a terminal.
        out: A text stream.
    """
    stream = out or sys.stdout
    if as_json:
        yield lambda event: _write(stream, _json_line(event))
    elif stream.isatty():
        with _bars(stream) as show:
            yield show
    else:
        yield _lines(stream)


def _write(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def _json_line(event: Event) -> str:
    record = {"event": event.kind, "time": round(time.time(), 3), **event.facts, "text": event.text}
    return msgspec.json.encode(record).decode()


def _lines(stream: TextIO) -> Show:
    shown_at = dict.fromkeys(_REPEATED, float("-inf"))

    def show(event: Event) -> None:
        now = time.monotonic()
        if event.kind in shown_at:
            if now - shown_at[event.kind] < PLAIN_EVERY_S:
                return
            shown_at[event.kind] = now
        _write(stream, f"{time.strftime('%H:%M:%S')} {event.kind}: {event.text}")

    return show


@contextmanager
def _bars(stream: TextIO) -> Iterator[Show]:
    # Imported here: without a terminal rich would cost a waiting client 10 MB.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.fields[kind]}"), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(file=stream), transient=True) as progress:
        bar = progress.add_task("", kind="", visible=False)

        def show(event: Event) -> None:
            if event.kind in _REPEATED:
                total = event.facts["total"] or None
                progress.update(
                    bar,
                    kind=event.kind,
                    description=event.text,
                    completed=event.facts["done"],
                    total=total,
                    visible=True,
                )
            else:
                progress.update(bar, visible=False)
                progress.console.print(
                    f"{time.strftime('%H:%M:%S')} {event.kind}: {event.text}", markup=False, highlight=False
                )

        yield show
