"""How benchmarks measure: seconds by two clocks, fresh processes, medians of turns."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from converters.errors import TunefleetError

T = TypeVar("T")


class Took(NamedTuple):
    """What a piece of work took."""

    seconds: float  # by the clock
    cpu_seconds: float  # of all threads of this process, for machines that others use at the same time


class Spread(Struct, frozen=True):
    """Figures of several turns."""

    median: float
    lowest: float
    highest: float

    def shown(self, form: str = ".3g") -> str:
        """Returns the median, and the other two in brackets."""
        return f"{self.median:{form}} ({self.lowest:{form}} to {self.highest:{form}})"


def spread(values: Sequence[float]) -> Spread:
    """Returns the median, the lowest and the highest of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def timed(work: Callable[..., T], *arguments: Any) -> tuple[T, Took]:
    """Calls a function, and returns its result and what it took."""
    began = time.perf_counter(), time.process_time()
    result = work(*arguments)
    return result, Took(time.perf_counter() - began[0], time.process_time() - began[1])


def run_module(
    module: str, *arguments: str, environment: Mapping[str, str] | None = None, python: str = sys.executable
) -> str:
    """Runs a module in a process of its own, and returns what it prints.

    Args:
        module: As `python -m` takes it.
        arguments: Of its command line.
        environment: In addition to this process's.
        python: The interpreter.

    Raises:
        TunefleetError: It failed; the message holds its last line.
    """
    command = [python, "-W", "ignore", "-m", module, *arguments]
    # As edge.training.worker starts the product's own; a user's variables go before.
    ours = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    given = {**ours, **os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})}
    done = subprocess.run(command, env=given, capture_output=True, text=True)
    if done.returncode:
        reason = last_line(done.stderr) or "it gives no reason"
        raise TunefleetError(f"{module} ended with {done.returncode}: {reason}")
    return done.stdout


def as_json(report: object) -> str:
    """Returns a report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def print_report(report: Mapping[str, object], in_json: bool) -> None:
    """Prints a report as JSON, or a line for each of its figures."""
    if in_json:
        print(as_json(report))
        return
    for name, value in report.items():
        print(f"{name:18} {value.shown() if isinstance(value, Spread) else value}")


def last_line(text: str) -> str:
    """Returns the last line that is not empty; where all are, nothing."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
