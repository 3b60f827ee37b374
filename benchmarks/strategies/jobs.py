"""Runs of the simulation as jobs: a process for each core, a file for each result, no run done twice.

Results are kept by `benchmarks/results.py`: after a change to the code, `--fresh` does everything anew.
"""

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from benchmarks.results import file_name, others_note, save_result
from benchmarks.strategies.lessons import RECIPES, Lesson, make_lesson
from benchmarks.strategies.lineup import HOSTILE, POOLED, QUICK, SIZES, Entry, Size
from benchmarks.strategies.outcome import Outcome, Settings
from benchmarks.strategies.pooled import train_pooled
from benchmarks.strategies.population import Trace, make_population
from benchmarks.strategies.simulation import Fleet
from benchmarks.strategies.workbench import Workbench, load_base, memory_folder
from converters.errors import TunefleetError
from coordinator.config import CoordinatorConfig, read_config

FORMAT = 2  # of what a result means
GIVEN = ("steps", "lr", "seq_tokens", "batch_tokens")  # of the recipe; the rest is the strategy's or stays


class Job(Struct, frozen=True):
    """One run."""

    entry: Entry
    seed: int
    is_quick: bool
    traces: tuple[Trace, ...] = ()

    @property
    def size(self) -> Size:
        """How long it is."""
        size = SIZES[self.entry.setting.lesson]
        if not self.is_quick:
            return size
        return Size(max(2 * size.buffer_size, round(QUICK * size.num_updates)), 20, size.buffer_size)

    @property
    def path(self) -> str:
        """Name of its result's file in the folder of results."""
        traces = self.traces if self.entry.setting.population == "traces" else ()
        settings = (FORMAT, self.entry, self.seed, self.size, RECIPES[self.entry.setting.lesson], traces)
        return file_name(f"{self.entry.setting.lesson}-{self.entry.row}-{self.seed}", settings)


class Failure(Struct, frozen=True):
    """A run that the strategy or the settings made impossible."""

    message: str


def run_job(job: Job) -> Outcome:
    """Runs a job from beginning to end in this process.

    Raises:
        TunefleetError: The lesson's data or base is missing, or the strategy refuses.
    """
    entry, size = job.entry, job.size
    setting = entry.setting
    lesson = make_lesson(setting.lesson, job.seed)
    num_devices = len(lesson.devices)
    hostile = random.Random(f"hostile {job.seed}").sample(range(num_devices), round(HOSTILE * num_devices))
    settings = Settings(
        num_updates=size.num_updates,
        score_every=size.score_every,
        seed=job.seed,
        poison=setting.poison,
        poisoned=tuple(sorted(hostile)) if setting.poison else (),
    )
    with memory_folder() as folder:
        flipped = settings.poisoned if setting.poison == "label-flipped" else ()
        bench = Workbench(lesson, load_base(lesson.base), folder, flipped)
        if entry.row == POOLED:
            return train_pooled(bench, settings)
        population = make_population(
            setting.population, num_devices, job.seed, drop_out=setting.drop_out, traces=job.traces
        )
        config = make_config(entry, lesson, size, bench.calibration_path)
        return Fleet(bench, population, config, settings).run()


def make_config(entry: Entry, lesson: Lesson, size: Size, calibration: Path) -> CoordinatorConfig:
    """Returns what the coordinator of an entry is told, checked as the product checks it.

    Args:
        entry: Its settings stand above all others.
        lesson: Its rank, scale, targets and recipe.
        size: Its buffer.
        calibration: The calibration set's file.

    Raises:
        ConfigError: Naming every fault of the settings.
    """
    settings: dict[str, Any] = {
        "broker": "mqtt://127.0.0.1",  # nobody connects
        "fleet": "simulation",
        "base": str(lesson.base),
        "state": "",
        "ranks": [lesson.rank],
        "scale": lesson.scale,
        "targets": list(lesson.targets),
        "recipe": {name: getattr(lesson.recipe, name) for name in GIVEN},
        "buffer_size": size.buffer_size,
        "time_budget_s": 0.0,
        "max_staleness": entry.setting.max_staleness,
        "calibration_data": str(calibration),
    }
    return read_config(None, {**settings, **entry.settings})


def run_jobs(
    jobs: Sequence[Job], out: Path, num_processes: int, *, is_fresh: bool
) -> list[Outcome | Failure]:
    """Returns results in the jobs' order; what lies in `out` is not run again.

    Raises:
        BrokenProcessPool: A process died.
    """
    out.mkdir(parents=True, exist_ok=True)
    different = {job.path: job for job in jobs}  # tables share some
    missing = [job for path, job in different.items() if is_fresh or not (out / path).exists()]
    others = others_note(out, different)
    print(f"{len(jobs)} runs, {len(missing)} of them to do{others}", file=sys.stderr, flush=True)
    failures = _run_missing(missing, out, num_processes) if missing else {}
    return [
        failures.get(job.path) or msgspec.json.decode((out / job.path).read_bytes(), type=Outcome)
        for job in jobs
    ]


def _run_missing(missing: Sequence[Job], out: Path, num_processes: int) -> dict[str, Failure]:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come: one for each core
    spawn = multiprocessing.get_context("spawn")
    failures: dict[str, Failure] = {}
    began = time.monotonic()
    with ProcessPoolExecutor(num_processes, spawn, initializer=end_with_parent) as pool:
        # Longest first would end more evenly; by lesson, each process keeps to few base models.
        under_way = {pool.submit(_try_job, job): job for job in missing}
        for number, done in enumerate(as_completed(under_way), 1):
            job, found = under_way[done], done.result()
            if isinstance(found, Failure):
                failures[job.path] = found
            else:
                save_result(found, out / job.path)
            left_s = (time.monotonic() - began) / number * (len(missing) - number)
            print(_progress(job, found, number, len(missing), left_s), file=sys.stderr, flush=True)
    return failures


def _try_job(job: Job) -> Outcome | Failure:
    try:
        return run_job(job)
    except TunefleetError as error:
        return Failure(str(error))


def end_with_parent() -> None:
    """Lets a pool's process end with the one that started it, which by itself it would outlive and wait for.

    Ctrl-C, which the terminal sends to both, ends it at once instead of its job alone.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _progress(job: Job, found: Outcome | Failure, number: int, count: int, left_s: float) -> str:
    entry = job.entry
    what = f"[{number}/{count}] {entry.setting.lesson}, {entry.row}, seed {job.seed}"
    if isinstance(found, Failure):
        return f"{what}: not run: {found.message}"
    last = found.points[-1]
    return (
        f"{what}: loss {last.loss:.4f}, accuracy {last.accuracy:.1%}, {found.cpu_s:.0f} s; "
        f"about {left_s / 60:.0f} min left"
    )
