"""The watcher: subscribes, shows what comes, and never publishes.

Its client id is drawn anew each time and its session ends with its connection, so that it disturbs nobody and
the broker keeps nothing for it.
"""

import asyncio
import io
import shutil
import signal
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from coordinator.watch.memory import Memory
from coordinator.watch.show import Show
from coordinator.watch.sighting import Sighting, sight
from coordinator.watch.traffic import Traffic
from edge.complaints import Complaints
from edge.protocol.topics import Topics
from edge.transport.base import Transport

ANY = "+"
TICK_S = 0.25
SILENCE_S = 5.0


async def watch(transport: Transport, fleet: str, show: Show, say: Callable[[str], None]) -> None:
    """Shows what is said until it is ended.

    Args:
        transport: Not entered yet.
        fleet: Its name, or `+` for all.
        show: Makes lines of what is seen.
        say: Takes lines.

    Raises:
        TransportError: The first connection was refused, or the broker allows no subscription.
    """
    memory = Memory()
    traffic = Traffic(memory)
    complain = Complaints(lambda text: print(text, file=sys.stderr), time.monotonic)

    async def tick() -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for told in traffic.due(time.monotonic()):
                say(show(told))

    async with transport:
        silence = asyncio.get_running_loop().call_later(SILENCE_S, _tell_silence, fleet)
        ticking = asyncio.create_task(tick())
        try:
            await _subscribe(transport, fleet)
            async for message in transport.messages():
                silence.cancel()
                try:
                    seen = sight(message, memory)
                    told = seen if isinstance(seen, Sighting) else traffic.count(seen, time.monotonic())
                    line = show(told) if told is not None else None
                except Exception as error:  # nothing that is received ends a watcher
                    complain.unforeseen(message.topic[:200], error)
                    continue
                if line is not None:
                    say(line)
        finally:
            silence.cancel()
            ticking.cancel()


class Output(NamedTuple):
    """Where lines go.

    Attributes:
        say: Writes a line, so that a pipe's reader sees it at once.
        width: Columns of the terminal; None where it is none.
    """

    say: Callable[[str], None]
    width: int | None


def open_output() -> Output:
    """Opens standard output; what a terminal's encoding lacks is escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return Output(lambda line: print(line, flush=True), width)


def end_with_the_terminal() -> None:
    """Lets Ctrl-C, or a reader that goes, end this process at once, as `tail -f`: nothing is unsaved."""
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


async def _subscribe(transport: Transport, fleet: str) -> None:
    topics = Topics(fleet)
    for topic in (
        f"{topics.coordinator}/#",  # and what is said below it
        topics.version(ANY),
        topics.device(ANY, ANY),
        topics.up(ANY, ANY, ANY),
        topics.blob(ANY),
    ):
        await transport.subscribe(topic)


def _tell_silence(fleet: str) -> None:
    what = "of any fleet" if fleet == ANY else f"of fleet {fleet}"
    sys.stderr.write(f"nothing is said {what} on this broker so far; is it the right one?\n")
