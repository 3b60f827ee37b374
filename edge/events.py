"""What a device or a coordinator tells about itself: lines, JSON lines, or a bar on a terminal.

What the modules below log through `logging` (a connection that broke, every message with `--log-level debug`)
is shown among the events, so that there is one stream and one order.
"""

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TextIO

import msgspec

from converters.choices import LogLevel
from converters.plain import plain, plain_json

EventKind = Literal[
    "checked",  # the data; before the broker is asked
    "backend",  # what will train, and why
    "joined",
    "enrolled",  # the coordinator knows this device by its token, or by its new key
    "waiting",
    "proved",  # the base model is a copy of the fleet's
    "downloading",  # repeated, with `done` and `total` in chunks
    "loaded",  # the base model, in which precision, and why
    "training",  # repeated, with `done` and `total` in steps (0: bounded by time)
    "spooled",
    "accepted",
    "rejected",
    "dropped",  # a task that is of no use any more
    "warning",
    "stopped",
]
_REPEATED = ("downloading", "training")
_WARNINGS = ("warning", "rejected", "refused", "discarded", "dropped", "restored")
_LOGGED = ("edge", "coordinator")  # whose logging is shown
PLAIN_EVERY_S = 10.0


class Event(NamedTuple):
    """One thing that happened."""

    kind: str  # `EventKind`, or the kind of a `coordinator.events` record; of what is logged the level
    text: str
    facts: dict[str, Any]  # JSON values, units at the end of their names

    @property
    def level(self) -> LogLevel:
        """Tells how much it matters."""
        if self.kind == "debug":
            return "debug"
        return "warning" if self.kind in _WARNINGS else "info"


Show = Callable[[Event], None]


@contextmanager
def shown(
    as_json: bool, out: TextIO | None = None, *, log_level: LogLevel = "info", has_bars: bool = True
) -> Iterator[Show]:
    """Shows events on `out`, standard output by default.

    Args:
        as_json: One JSON object a line, every event; else lines for people, or a bar on a terminal.
        out: A text stream.
        log_level: Events that matter less are left out.
        has_bars: Whether a terminal gets a bar; without, lines are told without the event's kind.
    """
    stream = out or sys.stdout
    least = logging.getLevelName(log_level.upper())
    with _way(stream, as_json, has_bars) as way:

        def show(event: Event) -> None:
            if logging.getLevelName(event.level.upper()) < least:
                return
            try:
                way(event)
            except BrokenPipeError:  # nobody listens any more: `| head`
                raise
            except OSError:  # a log on a full or failing disk: the work goes on without it
                pass

        with _logged(show, least):
            yield show


@contextmanager
def _way(stream: TextIO, as_json: bool, has_bars: bool) -> Iterator[Show]:
    if as_json:
        yield lambda event: _write(stream, _json_line(event))
    elif not has_bars:
        yield lambda event: _write(stream, plain(f"{time.strftime('%H:%M:%S')} {event.text}"))
    elif stream.isatty():
        with _bars(stream) as show:
            yield show
    else:
        yield _lines(stream)


class _Logged(logging.Handler):
    """Shows what is logged."""

    def __init__(self, show: Show) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a record as an event."""
        kind = "debug" if record.levelno < logging.INFO else "info"
        kind = "warning" if record.levelno >= logging.WARNING else kind
        lines = [record.getMessage()]
        if record.exc_info:
            lines += "".join(traceback.format_exception(*record.exc_info)).splitlines()
        for line in lines:
            self._show(Event(kind, line, {"logger": record.name}))


@contextmanager
def _logged(show: Show, least: int) -> Iterator[None]:
    handler = _Logged(show)
    loggers = [logging.getLogger(name) for name in _LOGGED]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(least)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagates) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagates


def _write(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def _json_line(event: Event) -> str:
    told = {"event": event.kind, "level": event.level, "time": round(time.time(), 3)}
    record = {**told, **event.facts, "text": event.text}
    return plain_json(msgspec.json.encode(record).decode())


def _lines(stream: TextIO) -> Show:
    shown_at = dict.fromkeys(_REPEATED, float("-inf"))

    def show(event: Event) -> None:
        now = time.monotonic()
        if event.kind in shown_at:
            if now - shown_at[event.kind] < PLAIN_EVERY_S:
                return
            shown_at[event.kind] = now
        _write(stream, plain(f"{time.strftime('%H:%M:%S')} {event.kind}: {event.text}"))

    return show


@contextmanager
def _bars(stream: TextIO) -> Iterator[Show]:
    # Imported here: without a terminal rich would cost a waiting client 10 MB.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.fields[kind]}"),
        BarColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(file=stream), transient=True) as progress:
        bar = progress.add_task("", kind="", visible=False)

        def show(event: Event) -> None:
            if event.kind in _REPEATED:
                total = event.facts["total"] or None
                progress.update(
                    bar,
                    kind=event.kind,
                    description=plain(event.text),
                    completed=event.facts["done"],
                    total=total,
                    visible=True,
                )
            else:
                progress.update(bar, visible=False)
                progress.console.print(
                    plain(f"{time.strftime('%H:%M:%S')} {event.kind}: {event.text}"),
                    markup=False,
                    highlight=False,
                )

        yield show
