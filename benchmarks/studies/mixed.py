"""Is an adapter from a torch, an MLX and a llama.cpp device as good as one from three torch devices?

Three of the demo's households, its model and its recipe. For every seed four fleets train on the same
sentences in the same order: three torch devices; torch, MLX and llama.cpp on q8_0; the same on q4_0; and
three torch devices again, from another first adapter and with another order, to show what chance does. Which
household has which backend goes round with the seed.

Every other version is scored by torch on the model as it is shipped. A fleet's adapter is the version with
the least loss on 48 sentences, as a coordinator watches versions by; it is judged by 240 others. No single
device could have learnt either. Devices train in real worker processes, in lockstep (see `lockstep.py`): how
updates fare that come late is the demo's matter.

Reported are the differences to three torch devices, paired by seed, with Student's 95 % interval over seeds.
A fleet is as good where the interval of the share of exact answers lies above -2 points. Fleets that are done
are kept in the folder, and a run that was cut off goes on there.

Run as: python -m benchmarks.studies.mixed [--seeds 5] [--versions 40] [--out runs/mixed] [--quick] [--json]
"""

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

import msgspec
from msgspec import Struct

from benchmarks.measuring import as_json
from benchmarks.paired import Difference, paired_difference
from benchmarks.results import file_name, others_note, save_result
from benchmarks.studies.lockstep import Device, Lockstep
from converters.adapter import initial_adapter
from converters.bases.read import read_base
from converters.bases.targets import match_targets
from converters.errors import TunefleetError
from coordinator.demo.files import CALIBRATION, HELD_OUT, Paths, write_data
from coordinator.demo.household import FARM, FLAT, WORKSHOP
from coordinator.demo.models import make_models
from coordinator.demo.plan import MODEL, RANK, SCALE, TARGETS, DemoPlan, Member
from edge.backends import BackendName
from edge.protocol.messages import Recipe
from edge.training.data.source import DataSource
from edge.training.requests import Scoring
from edge.training.worker.supervisor import Worker

HOMES = (FLAT, FARM, WORKSHOP)
RIVAL = "torch"
FLEETS = {  # name to what its devices train with
    RIVAL: ("torch", "torch", "torch"),
    "mixed, q8_0": ("torch", "mlx", "llama_cpp q8_0"),
    "mixed, q4_0": ("torch", "mlx", "llama_cpp q4_0"),
    "torch again": ("torch", "torch", "torch"),
}
PLAN = DemoPlan(tuple(Member(home, RIVAL, 1.0) for home in HOMES), ())
RECIPE = Recipe(steps=PLAN.steps, lr=PLAN.lr, seq_tokens=PLAN.seq_tokens, batch_tokens=PLAN.batch_tokens)
OTHER = 1000  # is added to the seed of the first adapter and of the order where a fleet trains again
SCORE_EVERY = 2  # versions
MARGIN = 0.02  # of the share of exact answers


class Point(Struct, frozen=True):
    """A version's scores."""

    version: int
    watched: float  # loss on the sentences that versions are watched by, nats a token
    loss: float  # on the held-out ones
    exact: float  # share of the held-out commands that are right as a whole


Course = list[Point]  # of one fleet, oldest version first
MEASURES: Mapping[str, Callable[[Course], float]] = {
    "exact": lambda course: chosen(course).exact,
    "loss": lambda course: chosen(course).loss,
    "exact, mean of all versions": lambda course: statistics.fmean(point.exact for point in course),
}


class Summary(Struct, frozen=True):
    """What all fleets came to."""

    courses: dict[str, list[Course]]  # fleet to its course for every seed
    values: dict[str, dict[str, list[float]]]  # measure to fleet to a value for every seed
    differences: dict[str, dict[str, Difference]]  # measure to fleet but the rival to difference
    as_good: dict[str, bool]  # of the mixed ones


class Lane:
    """Workers that are kept from fleet to fleet: one for each kind of training, one task at a time."""

    def __init__(self, paths: Paths, stack: AsyncExitStack) -> None:
        self._paths, self._stack = paths, stack
        self._workers: dict[str, Worker] = {}

    async def worker(self, kind: str) -> Worker:
        """Returns the worker of a kind, `torch` or `llama_cpp q8_0`."""
        if kind not in self._workers:
            backend, _, quant = kind.partition(" ")
            worker = Worker(self._paths.base(quant or None), cast(BackendName, backend), "float32")
            self._workers[kind] = await self._stack.enter_async_context(worker)
        return self._workers[kind]


async def run_fleet(lane: Lane, name: str, seed: int, num_versions: int, out: Path) -> Course:
    """Runs one fleet from version 0 to its last."""
    folder = out / "under-way" / f"{slug(name)}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    own_seed = seed + OTHER if name == "torch again" else seed
    kinds, paths = FLEETS[name], paths_of(out, seed)
    devices = [
        Device(
            f"{home.device_id}-{own_seed}",
            await lane.worker(kinds[(number + seed) % len(kinds)]),
            paths.data(home.device_id),
        )
        for number, home in enumerate(HOMES)
    ]
    base = read_base(MODEL)
    adapter = initial_adapter(match_targets(base.modules, TARGETS), rank=RANK, scale=SCALE, seed=own_seed)
    fleet = Lockstep(devices, RECIPE, adapter, base.fingerprint, folder)
    judge = await lane.worker(RIVAL)
    course = [
        await score(judge, fleet.path, version, paths)
        async for version in fleet.run(num_versions)
        if version % SCORE_EVERY == 0
    ]
    shutil.rmtree(folder)
    return course


async def score(judge: Worker, adapter: Path, version: int, paths: Paths) -> Point:
    """Scores a version on the sentences it is watched by, and on the held-out ones."""
    sources = [DataSource(path=str(paths.data(name))) for name in (CALIBRATION, HELD_OUT)]
    watched, judged = [await judge.score(Scoring(adapter=str(adapter), data=source)) for source in sources]
    return Point(version, watched.loss, judged.loss, judged.exact_match)


def chosen(course: Course) -> Point:
    """Returns the version that a fleet's coordinator would give away."""
    return min(course, key=lambda point: point.watched)


def paths_of(out: Path, seed: int) -> Paths:
    """Returns where the sentences of a seed lie."""
    return Paths(out / f"seed-{seed}")


async def make_bases(paths: Paths) -> None:
    """Makes the GGUF files that are not there yet."""
    kinds = {kind.partition(" ")[2] for kinds in FLEETS.values() for kind in kinds} - {""}
    if not all(paths.base(quant).exists() for quant in kinds):
        shutil.rmtree(paths.folder / "models", ignore_errors=True)
        members = (Member(FLAT, "llama_cpp", 1.0, quant) for quant in kinds)
        await make_models(paths, DemoPlan(tuple(members), ()))


async def run_all(num_seeds: int, num_versions: int, out: Path) -> dict[str, list[Course]]:
    """Runs all fleets of all seeds, as many at a time as there are cores."""
    paths = Paths(out)
    await make_bases(paths)
    for seed in range(num_seeds):
        write_data(paths_of(out, seed), PLAN._replace(seed=seed), HOMES)
    waiting = [(name, seed) for seed in range(num_seeds) for name in FLEETS]
    found: dict[tuple[str, int], Course] = {}

    async def work(lane: Lane) -> None:
        while waiting:
            name, seed = waiting.pop(0)
            found[name, seed] = await run_or_read(lane, name, seed, num_versions, out)

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        for _ in range(os.cpu_count() or 1):
            tasks.create_task(work(Lane(paths, stack)))
    return {name: [found[name, seed] for seed in range(num_seeds)] for name in FLEETS}


async def run_or_read(lane: Lane, name: str, seed: int, num_versions: int, out: Path) -> Course:
    """Returns a fleet's course, from an earlier run of the same settings where there was one."""
    path = out / kept_name(name, seed, num_versions)
    start = time.monotonic()
    is_kept = path.exists()
    if not is_kept:
        save_result(await run_fleet(lane, name, seed, num_versions, out), path)
    course = msgspec.json.decode(path.read_bytes(), type=Course)
    took = "kept from an earlier run" if is_kept else f"{time.monotonic() - start:.0f} s"
    print(f"seed {seed}, {name}: {chosen(course).exact:.1%} ({took})", file=sys.stderr, flush=True)
    return course


def kept_name(name: str, seed: int, num_versions: int) -> str:
    """Returns the name of the file that a fleet's course is kept in."""
    counts = (PLAN.num_own, PLAN.num_held_out, PLAN.num_calibration, SCORE_EVERY, num_versions)
    settings = (FLEETS[name], RECIPE, RANK, SCALE, TARGETS, counts)
    return file_name(f"{slug(name)}-{seed}", settings)


def slug(name: str) -> str:
    """Returns a fleet's name as part of a file's."""
    return name.replace(", ", "-").replace(" ", "-")


def summarise(courses: dict[str, list[Course]]) -> Summary:
    """Computes all measures of all fleets, and their differences to the rival's."""
    values = {
        measure: {name: [of(course) for course in of_seeds] for name, of_seeds in courses.items()}
        for measure, of in MEASURES.items()
    }
    differences = {
        measure: {
            name: paired_difference(own, of_fleets[RIVAL]) for name, own in of_fleets.items() if name != RIVAL
        }
        for measure, of_fleets in values.items()
    }
    as_good = {
        name: difference.student.low > -MARGIN
        for name, difference in differences["exact"].items()
        if name.startswith("mixed")
    }
    return Summary(courses, values, differences, as_good)


def show(summary: Summary) -> None:
    """Prints a table for each measure, and the verdicts."""
    for measure, of_fleets in summary.values.items():
        print(f"\n{measure:<30}{'mean':>9}{'difference':>12}{'95 % interval':>22}   seed by seed")
        for name, values in of_fleets.items():
            one = summary.differences[measure].get(name)
            interval, difference = "", ""
            if one:
                interval = f"[{shown(one.student.low, measure)}, {shown(one.student.high, measure)}]"
                difference = shown(one.mean, measure)
            by_seed = " ".join(shown(value, measure) for value in values)
            mean = shown(statistics.fmean(values), measure)
            print(f"{name:<30}{mean:>9}{difference:>12}{interval:>22}   {by_seed}")
    for name, is_as_good in summary.as_good.items():
        what = "as good as" if is_as_good else "not shown to be as good as"
        print(f"\n{name}: {what} three torch devices, to within {MARGIN:.0%}")


def shown(value: float, measure: str) -> str:
    """Writes a number of a measure."""
    return f"{value:.5f}" if measure == "loss" else f"{value:.2%}"


def main() -> None:
    """Runs what is not kept; exit status 1 where a mixed fleet is not shown to be as good."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--versions", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/mixed"))
    parser.add_argument("--quick", action="store_true", help="two seeds, four versions: does it run?")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds is {options.seeds}, expected at least 2: differences need an interval")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a fleet for each core
    options.out.mkdir(parents=True, exist_ok=True)
    num_seeds, num_versions = (2, 4) if options.quick else (options.seeds, options.versions)
    wanted = [kept_name(name, seed, num_versions) for name in FLEETS for seed in range(num_seeds)]
    missing = [name for name in wanted if not (options.out / name).exists()]
    print(
        f"{len(wanted)} fleets, {len(missing)} of them to train{others_note(options.out, wanted)}",
        file=sys.stderr,
    )
    try:
        courses = asyncio.run(run_all(num_seeds, num_versions, options.out))
    except* TunefleetError as group:
        sys.exit(f"tunefleet: {group.exceptions[0]}")
    summary = summarise(courses)
    if options.json:
        print(as_json(summary))
    else:
        show(summary)
    sys.exit(0 if options.quick or all(summary.as_good.values()) else 1)


if __name__ == "__main__":
    main()
