"""Runs of the simulation as jobs: a process for each core, a file for each result, no run done twice.

A result's name holds a digest of every setting that decides it, so a run that was cut off goes on with what
is missing. The code is not in the digest: after a change to it, `--fresh` does everything anew.
"""

import hashlib
import multiprocessing as mp
import os
import queue
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from benchmarks.strategies.fleet_tasks import RECIPES, FleetTask, make_task
from benchmarks.strategies.lineup import HOSTILE, POOLED, QUICK, SIZES, Entry, Size
from benchmarks.strategies.outcome import Outcome, Settings
from benchmarks.strategies.pooled import train_pooled
from benchmarks.strategies.population import Trace, make_population
from benchmarks.strategies.simulation import Fleet
from benchmarks.strategies.workbench import Bench, Models, memory_folder
from converters.errors import TunefleetError
from coordinator.config import CoordinatorConfig, read_config

FORMAT = 2  # of what a result means
POLL_S = 5.0
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
        size = SIZES[self.entry.setting.task]
        if not self.is_quick:
            return size
        return Size(max(2 * size.buffer_size, round(QUICK * size.num_updates)), 20, size.buffer_size)

    @property
    def path(self) -> str:
        """Of its result's file, within the folder of results."""
        traces = self.traces if self.entry.setting.population == "traces" else ()
        settings = (FORMAT, self.entry, self.seed, self.size, RECIPES[self.entry.setting.task], traces)
        content = msgspec.json.encode(settings, order="deterministic")
        row = "".join(letter if letter.isalnum() else "-" for letter in self.entry.row)
        return f"{self.entry.setting.task}-{row}-{self.seed}-{hashlib.sha256(content).hexdigest()[:12]}.json"


class Failure(Struct, frozen=True):
    """A run that the strategy or the settings made impossible."""

    message: str


def run_job(job: Job, models: Models) -> Outcome:
    """A job from beginning to end in this process.

    Raises:
        TunefleetError: The task's data or base is missing, or the strategy refuses.
    """
    entry, size = job.entry, job.size
    setting = entry.setting
    task = make_task(setting.task, job.seed)
    num_devices = len(task.devices)
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
        bench = Bench(task, models.find(task.base), folder, flipped)
        if entry.row == POOLED:
            return train_pooled(bench, settings)
        population = make_population(
            setting.population, num_devices, job.seed, drop_out=setting.drop_out, traces=job.traces
        )
        config = make_config(entry, task, size, bench.calibration_path)
        return Fleet(bench, population, config, settings).run()


def make_config(entry: Entry, task: FleetTask, size: Size, calibration: Path) -> CoordinatorConfig:
    """What the coordinator of an entry is told, checked as the product checks it.

    Args:
        entry: Its settings stand above all others.
        task: Its rank, scale, targets and recipe.
        size: Its buffer.
        calibration: The calibration set's file.

    Raises:
        ConfigError: Naming every fault of the settings.
    """
    settings: dict[str, Any] = {
        "broker": "mqtt://127.0.0.1",  # nobody connects
        "fleet": "simulation",
        "base": str(task.base),
        "state": "",
        "ranks": [task.rank],
        "scale": task.scale,
        "targets": list(task.targets),
        "recipe": {name: getattr(task.recipe, name) for name in GIVEN},
        "buffer_size": size.buffer_size,
        "time_budget_s": 0.0,
        "max_staleness": entry.setting.max_staleness,
        "calibration_data": str(calibration),
    }
    return read_config(None, {**settings, **entry.settings})


def run_jobs(
    jobs: Sequence[Job], out: Path, num_processes: int, *, is_fresh: bool
) -> list[Outcome | Failure]:
    """Results in the jobs' order; what lies in `out` is not run again.

    Raises:
        RuntimeError: A process died.
    """
    out.mkdir(parents=True, exist_ok=True)
    different = {job.path: job for job in jobs}.values()  # tables share some
    missing = [job for job in different if is_fresh or not (out / job.path).exists()]
    print(f"{len(jobs)} runs, {len(missing)} of them to do", file=sys.stderr, flush=True)
    failures = _run_missing(missing, out, num_processes) if missing else {}
    return [
        failures.get(job.path) or msgspec.json.decode((out / job.path).read_bytes(), type=Outcome)
        for job in jobs
    ]


def _run_missing(missing: Sequence[Job], out: Path, num_processes: int) -> dict[str, Failure]:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come: one for each core
    context = mp.get_context("spawn")
    inbox: mp.Queue[Job | None] = context.Queue()
    outbox: mp.Queue[tuple[Job, Outcome | Failure]] = context.Queue()
    # Longest first would end more evenly; by task, each process keeps to few base models.
    for job in [*missing, *[None] * num_processes]:
        inbox.put(job)
    workers = [context.Process(target=_work, args=(inbox, outbox), daemon=True) for _ in range(num_processes)]
    for worker in workers:
        worker.start()
    failures: dict[str, Failure] = {}
    began = time.monotonic()
    for number in range(1, len(missing) + 1):
        job, found = _next_result(outbox, workers)
        if isinstance(found, Failure):
            failures[job.path] = found
        else:
            _save(found, out / job.path)
        left_s = (time.monotonic() - began) / number * (len(missing) - number)
        print(_progress(job, found, number, len(missing), left_s), file=sys.stderr, flush=True)
    return failures


def _work(inbox: "mp.Queue[Job | None]", outbox: "mp.Queue[tuple[Job, Outcome | Failure]]") -> None:
    models = Models()
    while job := _next_job(inbox):
        try:
            outbox.put((job, run_job(job, models)))
        except TunefleetError as error:
            outbox.put((job, Failure(str(error))))


def _next_job(inbox: "mp.Queue[Job | None]") -> Job | None:
    """None, too, when the process that hands jobs out was killed."""
    parent = mp.parent_process()
    while parent is None or parent.is_alive():
        try:
            return inbox.get(timeout=POLL_S)
        except queue.Empty:
            continue
    return None


def _next_result(
    outbox: "mp.Queue[tuple[Job, Outcome | Failure]]", workers: Sequence[mp.process.BaseProcess]
) -> tuple[Job, Outcome | Failure]:
    while True:
        try:
            return outbox.get(timeout=POLL_S)
        except queue.Empty:
            codes = [worker.exitcode for worker in workers if worker.exitcode]
            if codes:
                raise RuntimeError(f"a process of the simulation died with exit status {codes[0]}") from None


def _save(outcome: Outcome, path: Path) -> None:
    partial = path.with_suffix(".part")
    partial.write_bytes(msgspec.json.encode(outcome))
    partial.replace(path)


def _progress(job: Job, found: Outcome | Failure, number: int, count: int, left_s: float) -> str:
    entry = job.entry
    what = f"[{number}/{count}] {entry.setting.task}, {entry.row}, seed {job.seed}"
    if isinstance(found, Failure):
        return f"{what}: not run: {found.message}"
    last = found.points[-1]
    return (
        f"{what}: loss {last.loss:.4f}, accuracy {last.accuracy:.1%}, {found.cpu_s:.0f} s; "
        f"about {left_s / 60:.0f} min left"
    )
