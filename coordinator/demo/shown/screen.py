"""What a user sees while the demo runs: a picture that changes in place on a terminal, plain lines elsewhere.

The picture fits 80 columns and 24 rows and never scrolls; what stays on the terminal is the result alone.
"""

import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from converters.plain import plain
from coordinator.demo.result import DemoResult
from coordinator.demo.shown.views import DeviceView, FleetView

NUM_NOTES = 8  # of the stage under way: with them the picture has 20 rows
REFRESHES_PER_S = 4
BAR_WIDTH = 20
PLAIN_WIDTH = 100  # of the result's table, where the output is no terminal
UNTIL_STOPPED = "Ctrl-C ends all of it and keeps what was learnt."


class Screen(AbstractContextManager["Screen"], Protocol):
    """Shows how the demo goes; used as a context."""

    def stage(self, what: str, total: int = 0) -> None:
        """Begins a stage, of `total` steps where they are counted; the one before is done."""
        ...

    def step(self, note: str) -> None:
        """Counts one more step of the stage as done."""
        ...

    def fleet(self, view: FleetView) -> None:
        """Shows the fleet as it is now."""
        ...


def open_screen(console: Console, folder: str) -> Screen:
    """Returns the screen that suits the console: a picture, or lines where nothing can be drawn twice."""
    if console.is_terminal and not console.is_dumb_terminal:
        return Picture(console, folder)
    console.width = max(console.width, PLAIN_WIDTH)
    return Lines(console, folder)


class Lines:
    """One line for everything that happens."""

    def __init__(self, console: Console, folder: str) -> None:
        self._console, self._folder = console, folder
        self._version = -1

    def __enter__(self) -> Self:
        self._say(f"The demo's folder is {self._folder}/")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def stage(self, what: str, total: int = 0) -> None:
        """Says the stage; see `Screen.stage`."""
        self._say(what)

    def step(self, note: str) -> None:
        """Says the step; see `Screen.step`."""
        self._say(f"  {note}")

    def fleet(self, view: FleetView) -> None:
        """Says each version once."""
        if view.version > self._version:
            self._version = view.version
            self._say(f"  {view.describe()}")

    def _say(self, text: str) -> None:
        self._console.print(plain(text), markup=False, highlight=False, soft_wrap=True)


class Picture:
    """Stages, the devices, and how far the fleet is, drawn over and over in the same place."""

    def __init__(self, console: Console, folder: str) -> None:
        self._folder = folder
        self._begun_at = time.monotonic()
        self._stages: list[str] = []
        self._notes: list[str] = []
        self._total = 0
        self._view: FleetView | None = None
        self._live = Live(
            console=console, get_renderable=self.draw, refresh_per_second=REFRESHES_PER_S, transient=True
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def stage(self, what: str, total: int = 0) -> None:
        """See `Screen.stage`."""
        self._stages.append(what)
        self._notes, self._total, self._view = [], total, None

    def step(self, note: str) -> None:
        """See `Screen.step`."""
        self._notes.append(note)

    def fleet(self, view: FleetView) -> None:
        """See `Screen.fleet`."""
        self._view = view

    def draw(self) -> RenderableType:
        """Returns the picture as it is now."""
        head = Table.grid(expand=True)
        head.add_column(no_wrap=True)
        head.add_column(justify="right", no_wrap=True)
        head.add_row(
            Text(f"tunefleet demo, in {self._folder}/", "bold"), _clock(time.monotonic() - self._begun_at)
        )
        rows: list[RenderableType] = [head, Text()]
        rows += [Text(f"✓ {stage}", "green") for stage in self._stages[:-1]]
        rows += [Text(f"● {stage}", "bold") for stage in self._stages[-1:]]
        if self._view is not None:
            rows += [Text(), device_table(self._view.devices), Text(), *_progress(self._view)]
        else:
            rows += [
                Text(plain(f"  {note}"), no_wrap=True, overflow="ellipsis")
                for note in self._notes[-NUM_NOTES:]
            ]
            if self._total:
                rows.append(_bar(len(self._notes), self._total, f"{len(self._notes)} of {self._total}"))
        # The last row is short: behind a whole one the terminal's own ^C would begin another.
        return Group(*rows, Text(), Text(UNTIL_STOPPED, "dim"))


def device_table(devices: tuple[DeviceView, ...]) -> Table:
    """Returns a table of what each device does, in 76 columns at most."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("device", no_wrap=True, max_width=10)
    table.add_column("backend", no_wrap=True, max_width=14)
    table.add_column("slowed", no_wrap=True)
    table.add_column("does", no_wrap=True, min_width=26, max_width=26)
    table.add_column("step", no_wrap=True, justify="right", min_width=5)
    table.add_column("updates", no_wrap=True, justify="right")
    for device in devices:
        what, step, steps = device.activity
        table.add_row(
            Text(device.device_id, "bold"),
            Text(plain(device.backend)),
            _slowed(device.slowdown),
            Text(plain(what)),
            f"{step}/{steps}" if steps else "",
            str(device.updates),
        )
    return table


def result_table(result: DemoResult) -> Table:
    """Returns a table of the devices and what each gets from the fleet, in 80 columns."""
    table = Table(
        title="Unseen sentences answered exactly right",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    for name in ("device", "backend"):
        table.add_column(name, no_wrap=True)
    for name in ("updates", "staleness", "weight", "before", "alone", "fleet"):
        table.add_column(name, justify="right", no_wrap=True)
    for device in result.devices:
        table.add_row(
            Text(plain(device.device_id)),
            Text(plain(device.backend)),
            str(device.updates),
            f"{device.mean_staleness:.1f}",
            f"{device.weight_share:.0%}",
            f"{device.before.exact:.1%}",
            f"{device.alone.exact:.1%}",
            Text(f"{device.fleet.exact:.1%}", "bold green"),
        )
    return table


def _progress(view: FleetView) -> list[RenderableType]:
    left = f", at most {_clock(view.left_s)} left" if view.left_s is not None else ""
    return [
        _bar(max(view.version, 0), view.most, f"version {max(view.version, 0)} of at most {view.most}{left}"),
        Text(f"  {view.describe()}"),
    ]


def _bar(done: int, total: int, text: str) -> RenderableType:
    row = Table.grid(padding=(0, 2))
    row.add_row("", ProgressBar(total=total, completed=min(done, total), width=BAR_WIDTH), Text(text))
    return row


def _slowed(slowdown: float) -> str:
    return "no" if slowdown == 1 else f"{slowdown:g} x"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"
