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
import hashlib
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

import msgspec
from msgspec import Struct

from benchmarks.studies.lockstep import Device, Lockstep
from converters.adapter import initial_adapter
from converters.bases.read import read_base
from converters.bases.targets import match_targets
from converters.errors import TunefleetError
from coordinator.demo.files import CALIBRATION, HELD_OUT, MODEL, Paths
from coordinator.demo.household import FARM, FLAT, WORKSHOP, held_out, own_examples, save_examples
from coordinator.demo.models import make_models
from coordinator.demo.plan import RANK, SCALE, TARGETS, DemoPlan, Member
from edge.backends import BackendName
from edge.protocol.messages import Recipe
from edge.training.data.source import DataSource
from edge.training.worker.supervisor import Worker

HOMES = (FLAT, FARM, WORKSHOP)
PLAN = DemoPlan((), ())
RIVAL = "torch"
FLEETS = {  # name to what its devices train with
    RIVAL: ("torch", "torch", "torch"),
    "mixed, q8_0": ("torch", "mlx", "llama_cpp q8_0"),
    "mixed, q4_0": ("torch", "mlx", "llama_cpp q4_0"),
    "torch again": ("torch", "torch", "torch"),
}
OTHER = 1000  # is added to the seed of the first adapter and of the order where a fleet trains again
SCORE_EVERY = 2  # versions
MARGIN = 0.02  # of the share of exact answers
QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's, 97.5 %, from 1 df


class Point(Struct, frozen=True):
    """A version's scores."""

    version: int
    watched: float  # loss on the sentences that versions are watched by, nats a token
    loss: float  # on the held-out ones
    exact: float  # share of the held-out commands that are right as a whole


class Difference(Struct, frozen=True):
    """A mean of paired differences, and Student's 95 % interval of it."""

    mean: float
    low: float
    high: float


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
        """The one of a kind, `torch` or `llama_cpp q8_0`."""
        if kind not in self._workers:
            backend, _, quant = kind.partition(" ")
            worker = Worker(self._paths.base(quant or None), cast(BackendName, backend), "float32")
            self._workers[kind] = await self._stack.enter_async_context(worker)
        return self._workers[kind]


async def run_fleet(lane: Lane, name: str, seed: int, num_versions: int, out: Path) -> Course:
    """One fleet from version 0 to its last."""
    folder = out / "under-way" / f"{slug(name)}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    own_seed = seed + OTHER if name == "torch again" else seed
    kinds = FLEETS[name]
    devices = [
        Device(
            f"{home.device_id}-{own_seed}",
            await lane.worker(kinds[(number + seed) % len(kinds)]),
            data_path(out, home.device_id, seed),
        )
        for number, home in enumerate(HOMES)
    ]
    base = read_base(MODEL)
    adapter = initial_adapter(match_targets(base.modules, TARGETS), rank=RANK, scale=SCALE, seed=own_seed)
    recipe = Recipe(steps=PLAN.steps, lr=PLAN.lr, seq_tokens=PLAN.seq_tokens, batch_tokens=PLAN.batch_tokens)
    fleet = Lockstep(devices, recipe, adapter, base.fingerprint, folder)
    judge = await lane.worker("torch")
    course = [
        await score(judge, fleet.path, version, seed, out)
        async for version in fleet.run(num_versions)
        if version % SCORE_EVERY == 0
    ]
    shutil.rmtree(folder)
    return course


async def score(judge: Worker, adapter: Path, version: int, seed: int, out: Path) -> Point:
    """A version on the sentences it is watched by, and on the held-out ones."""
    sources = [DataSource(path=str(data_path(out, name, seed))) for name in (CALIBRATION, HELD_OUT)]
    watched, judged = [await judge.score(adapter, source) for source in sources]
    return Point(version, watched.loss, judged.loss, judged.exact_match)


def chosen(course: Course) -> Point:
    """The version that a fleet's coordinator would give away."""
    return min(course, key=lambda point: point.watched)


def write_data(seed: int, out: Path) -> None:
    """Every household's own sentences; the held-out ones, and others like those."""
    for home in HOMES:
        save_examples(own_examples(home, PLAN.num_own, seed), data_path(out, home.device_id, seed))
    unseen = held_out(PLAN.num_held_out + PLAN.num_calibration, seed, HOMES)
    save_examples(unseen[: PLAN.num_held_out], data_path(out, HELD_OUT, seed))
    save_examples(unseen[PLAN.num_held_out :], data_path(out, CALIBRATION, seed))


def data_path(out: Path, name: str, seed: int) -> Path:
    """Where sentences lie."""
    return out / "data" / f"{name}-{seed}.jsonl"


async def make_bases(paths: Paths) -> None:
    """The GGUF files that are not there yet."""
    kinds = {kind.partition(" ")[2] for kinds in FLEETS.values() for kind in kinds} - {""}
    if not all(paths.base(quant).exists() for quant in kinds):
        shutil.rmtree(paths.folder / "models", ignore_errors=True)
        members = (Member(FLAT, "llama_cpp", 1.0, quant) for quant in kinds)
        await make_models(paths, DemoPlan(tuple(members), ()))


async def run_all(num_seeds: int, num_versions: int, out: Path) -> dict[str, list[Course]]:
    """All fleets of all seeds, as many at a time as there are cores."""
    paths = Paths(out)
    await make_bases(paths)
    for seed in range(num_seeds):
        write_data(seed, out)
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
    """A fleet's course, from an earlier run of the same setting where there was one."""
    setting = repr((FLEETS[name], PLAN, RANK, SCALE, TARGETS, SCORE_EVERY, num_versions))
    digest = hashlib.sha256(setting.encode()).hexdigest()[:12]
    path = out / f"{slug(name)}-{seed}-{digest}.json"
    start = time.monotonic()
    is_kept = path.exists()
    if not is_kept:
        content = msgspec.json.encode(await run_fleet(lane, name, seed, num_versions, out))
        path.with_suffix(".part").write_bytes(content)
        path.with_suffix(".part").replace(path)
    course = msgspec.json.decode(path.read_bytes(), type=Course)
    took = "kept from an earlier run" if is_kept else f"{time.monotonic() - start:.0f} s"
    print(f"seed {seed}, {name}: {chosen(course).exact:.1%} ({took})", file=sys.stderr, flush=True)
    return course


def slug(name: str) -> str:
    """As part of a file's name."""
    return name.replace(", ", "-").replace(" ", "-")


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Of `ours` minus `theirs`, from two to ten pairs."""
    differences = [our - their for our, their in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(differences)
    half = QUANTILES[len(differences) - 2] * statistics.stdev(differences) / len(differences) ** 0.5
    return Difference(mean, mean - half, mean + half)


def summarise(courses: dict[str, list[Course]]) -> Summary:
    """All measures of all fleets, and their differences to the rival's."""
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
        name: difference.low > -MARGIN
        for name, difference in differences["exact"].items()
        if name.startswith("mixed")
    }
    return Summary(courses, values, differences, as_good)


def show(summary: Summary) -> None:
    """A table for each measure, and the verdicts."""
    for measure, of_fleets in summary.values.items():
        print(f"\n{measure:<30}{'mean':>9}{'difference':>12}{'95 % interval':>22}   seed by seed")
        for name, values in of_fleets.items():
            one = summary.differences[measure].get(name)
            interval = f"[{shown(one.low, measure)}, {shown(one.high, measure)}]" if one else ""
            difference = shown(one.mean, measure) if one else ""
            by_seed = " ".join(shown(value, measure) for value in values)
            mean = shown(statistics.fmean(values), measure)
            print(f"{name:<30}{mean:>9}{difference:>12}{interval:>22}   {by_seed}")
    for name, is_as_good in summary.as_good.items():
        what = "as good as" if is_as_good else "not shown to be as good as"
        print(f"\n{name}: {what} three torch devices, to within {MARGIN:.0%}")


def shown(value: float, measure: str) -> str:
    """A number of a measure."""
    return f"{value:.5f}" if measure == "loss" else f"{value:.2%}"


def main() -> None:
    """Runs what is not kept; exit status 1 where a mixed fleet is not shown to be as good."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, len(QUANTILES) + 2), metavar="2-10")
    parser.add_argument("--versions", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/mixed"))
    parser.add_argument("--quick", action="store_true", help="two seeds, four versions: does it run?")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a fleet for each core
    (options.out / "data").mkdir(parents=True, exist_ok=True)
    num_seeds, num_versions = (2, 4) if options.quick else (options.seeds, options.versions)
    try:
        courses = asyncio.run(run_all(num_seeds, num_versions, options.out))
    except* TunefleetError as group:
        sys.exit(f"tunefleet: {group.exceptions[0]}")
    summary = summarise(courses)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(summary), indent=2).decode())
    else:
        show(summary)
    sys.exit(0 if options.quick or all(summary.as_good.values()) else 1)


if __name__ == "__main__":
    main()
