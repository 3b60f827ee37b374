"""What a user sees while the demo runs: a bar on a terminal, plain lines elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from coordinator.demo.result import DemoResult


class Screen:
    """Stages, each with its own bar.

    Args:
        console: Where to; on stderr where stdout carries JSON.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def stage(self, what: str, total: int) -> None:
        """Begins a stage; the one before is done."""
        for task in self._bar.tasks:
            self._bar.update(task.id, total=task.completed, note="")
        self._bar.add_task(what, total=total, note="")
        self._say(what)

    def advance(self, done: int, note: str) -> None:
        """So much of the stage is done."""
        task = self._bar.tasks[-1]
        self._bar.update(task.id, completed=done, note=note)
        self._say(f"  {note}")

    def step(self, note: str) -> None:
        """One more thing of the stage is done."""
        self.advance(int(self._bar.tasks[-1].completed) + 1, note)

    def _say(self, text: str) -> None:
        if self._bar.disable:
            self._console.print(text, markup=False, highlight=False)


def result_table(result: DemoResult) -> Table:
    """The devices, and what each gets from the fleet."""
    table = Table(title="Share of unseen sentences answered exactly right", title_justify="left")
    for name in ("device", "asked for", "backend", "slowed"):
        table.add_column(name)
    for name in ("updates", "mean staleness", "weight", "before", "alone", "with the fleet"):
        table.add_column(name, justify="right")
    for device in result.devices:
        table.add_row(
            device.device_id,
            device.kind,
            device.backend,
            "no" if device.slowdown == 1 else f"{device.slowdown:g} x",
            str(device.updates),
            f"{device.mean_staleness:.2f}",
            f"{device.weight_share:.0%}",
            f"{device.before.exact:.1%}",
            f"{device.alone.exact:.1%}",
            f"[bold green]{device.fleet.exact:.1%}[/]",
        )
    return table
