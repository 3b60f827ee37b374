"""Progress for people, on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from converters.plain import plain
from edge.training.requests import Progress as TrainingProgress
from edge.training.requests import Validation

LINE_EVERY_S = 2.0
BAR_WIDTH, TIME_WIDTH = 16, 10  # beside 54 columns of text, which a step needs


class Display:
    """Shows stages and training progress; used as `with Display() as display:`.

    Args:
        seconds: Bound of a plan that is bounded by time.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.console = Console(stderr=True, highlight=False)
        self.said_at = -LINE_EVERY_S
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=BAR_WIDTH),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            transient=True,
        )
        self.row = self.bar.add_task("", total=None)
        self.begun = ""  # the stage under way, until its first step

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def stage(self, text: str) -> None:
        """Says what begins; on a terminal until it is over, or in a line of its own if it has steps."""
        if self.console.is_terminal:
            self.begun = text = plain(text)
            room = max(self.console.width - BAR_WIDTH - TIME_WIDTH, 1)
            self.bar.update(self.row, description=text if len(text) <= room else f"{text[: room - 1]}…")
        else:
            self._say(text)

    def step(self, progress: TrainingProgress) -> None:
        """Shows where training stands."""
        total = str(progress.steps) if progress.steps else f"{self.seconds:g} s"
        facts = (
            f"loss {progress.loss:.4f}  {progress.tokens_per_s:,.0f} tok/s  {progress.memory_bytes >> 20} MiB"
        )
        if self.console.is_terminal:
            self._tell_begun()
            done, of = self._share(progress)
            text = f"step {progress.step}/{total}  {facts}"
            self.bar.update(self.row, completed=done, total=of, description=text)
        elif progress.step == progress.steps or time.monotonic() - self.said_at >= LINE_EVERY_S:
            self._say(f"step {progress.step}/{total}  {facts}")
            self.said_at = time.monotonic()

    def validated(self, validation: Validation) -> None:
        """Says how well held-out data is predicted; a line of its own, which stays."""
        found = validation.evaluation
        self._tell_begun()
        self._say(
            f"step {validation.step}: validation loss {found.loss:.4f}, accuracy {found.accuracy:.1%}, "
            f"exact {found.exact_match:.1%}"
        )

    def _tell_begun(self) -> None:
        if self.begun:
            self._say(self.begun)
            self.begun = ""

    def _share(self, progress: TrainingProgress) -> tuple[float, float]:
        return (progress.step, progress.steps) if progress.steps else (progress.seconds, self.seconds)

    def _say(self, text: str) -> None:
        self.console.print(plain(text), markup=False, soft_wrap=True)
