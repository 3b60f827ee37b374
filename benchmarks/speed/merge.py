"""What a merge of 16 updates of 25.7 MB costs: rank 8 on 196 modules of 2048 x 2048, in float32.

`product`: seconds, processor seconds of all threads, and by how much the process grows, updates included, as
    a multiple of their own size. Cases: a `first` merge of updates from one version; a `later` one, which
    adds a carried remainder of rank 32; and a later one of updates from 16 versions, with 15 more bases.
`factors`: seconds of the sum, beside Flower's three ways (`flower.py`), in turns, on the same arrays;
    Flower's python is one that has it: `python3 -m venv DIR && DIR/bin/pip install flwr`.
`memory`: the peak of a sum in space `factors` of 4, 16 and 64 updates that are read from files, as the
    coordinator keeps them: it must not grow.
`tunefleet`: a whole merge of the default strategy, from payloads in f16 to the next adapter, where the guard
    takes the first step or refuses all six; the calibration set is played. Each payload is decoded once.

Every figure is the median over fresh processes, with the least and the greatest.

Run as: python -m benchmarks.speed.merge [product] [factors] [memory] [tunefleet] [--repeats 5]
        [--json] [--flower-python PATH]
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measuring import Spread, as_json, last_line, run_module, spread, timed
from benchmarks.memory import memory_bytes
from benchmarks.speed.flower import NUM_UPDATES, RANK, checksum, draw_arrays, time_runs
from converters.adapter import Factors, LoraAdapter
from converters.arithmetic import multiply, zeros_like
from converters.formats.canonical import load_adapter, save_adapter
from coordinator.strategies.choice import METHODS
from coordinator.strategies.contract import Contribution, State
from coordinator.strategies.merges.factors import add_increments
from coordinator.strategies.merges.product import add_products
from coordinator.strategies.pipeline import Pipeline
from edge.protocol.codec import decode_adapter, encode_adapter

SCALE, REMAINDER_RANK = 2.0, 32
BASES = {"first": 1, "later": 1, "later, 16 versions": 16}  # versions that updates begin from
COUNTS = (4, 16, 64)
MAX_SECONDS, MAX_GROWTH, MIN_SPEEDUP = 2.0, 1.5, 5.0  # targets
MAX_PEAK_RATIO = 1.1  # the interpreter's own peak varies by a few MB
MB = 1e6


class Update(NamedTuple):
    """What a merge needs of one."""

    delta: LoraAdapter | Path  # or the file of its payload
    base: LoraAdapter

    def load_delta(self) -> LoraAdapter:
        """Returns what was trained, decoded from its file if it is in one."""
        return (
            decode_adapter(self.delta.read_bytes(), like=self.base)
            if isinstance(self.delta, Path)
            else self.delta
        )

    def load_base(self) -> LoraAdapter:
        """Returns what training began from."""
        return self.base


def draw_adapter(seed: int, rank: int = RANK) -> LoraAdapter:
    """Returns an adapter of the same arrays as Flower's."""
    arrays = draw_arrays(seed, rank)
    return LoraAdapter(
        {
            f"model.layers.{number:03}.q_proj": Factors(a, b, SCALE)
            for number, (a, b) in enumerate(zip(arrays[::2], arrays[1::2], strict=True))
        }
    )


def merge_products(case: str) -> dict[str, float]:
    """Merges once, as cold as a coordinator does; the updates are drawn after the state was."""
    bases = [draw_adapter(100 + number) for number in range(BASES[case])]
    remainder = None if case == "first" else draw_adapter(99, REMAINDER_RANK)
    before_bytes = memory_bytes(peak=True)
    deltas = [draw_adapter(1 + number) for number in range(NUM_UPDATES)]
    size_bytes = sum(4 * delta.num_parameters for delta in deltas)
    buffer = [Update(*pair) for pair in zip(deltas, itertools.cycle(bases), strict=False)]
    state, weights = State(0, bases[0], remainder), [1 / NUM_UPDATES] * NUM_UPDATES
    _, took = timed(lambda: add_products(state, buffer, weights, REMAINDER_RANK).at(1.0))
    return {**took._asdict(), "growth": (memory_bytes(peak=True) - before_bytes) / size_bytes}


def sum_factors() -> dict[str, float]:
    """Adds the mean of the updates to nothing, several times."""
    deltas = [draw_adapter(1 + number) for number in range(NUM_UPDATES)]
    nothing = zeros_like(deltas[0])
    buffer = [Update(delta, nothing) for delta in deltas]
    weights = [1 / NUM_UPDATES] * NUM_UPDATES
    mean = add_increments(State(0, nothing), buffer, weights).at(1.0).adapter
    seconds = time_runs(lambda: add_increments(State(0, nothing), buffer, weights).at(1.0))
    return {"seconds": seconds, "checksum": checksum([array for _, one in mean for array in (one.a, one.b)])}


def sum_files(folder: Path, count: int) -> dict[str, float]:
    """Adds up `count` updates from files."""
    master = load_adapter(folder / "master")
    buffer = [Update(folder / str(number), master) for number in range(count)]
    _, took = timed(lambda: add_increments(State(0, master), buffer, [1 / count] * count).at(1.0))
    return {"seconds": took.seconds, "peak_mb": memory_bytes(peak=True) / MB}


class Played(NamedTuple):
    """A calibration set that likes every step better than the one before, or less."""

    slope: LoraAdapter
    losses: Iterator[float]

    def loss(self, adapter: LoraAdapter) -> float:
        """See `Calibrator.loss`."""
        return next(self.losses)

    def gradient(self, adapter: LoraAdapter) -> LoraAdapter:
        """See `Calibrator.gradient`."""
        return self.slope


def merge_guarded(verdict: str, folder: Path) -> dict[str, float]:
    """Merges by the default strategy, as a coordinator does."""
    master, remainder = draw_adapter(0), draw_adapter(99, REMAINDER_RANK)
    num_reads = itertools.count()

    def update(number: int) -> Contribution:
        def load_delta() -> LoraAdapter:
            next(num_reads)
            return decode_adapter((folder / str(number)).read_bytes(), like=master)

        return Contribution(str(number), f"d{number}", 0, 0, 1, load_delta, lambda: master)

    played = Played(draw_adapter(77), itertools.count(0.0, 1.0 if verdict == "refused" else -1.0))
    strategy = Pipeline("tunefleet", METHODS["tunefleet"], NUM_UPDATES, calibrator=played)  # type: ignore[arg-type]
    buffer = [update(number) for number in range(NUM_UPDATES)]
    _, took = timed(strategy.merge, State(0, master, remainder), buffer)
    return {**took._asdict(), "decodes": next(num_reads) / NUM_UPDATES}


def write_fleet(folder: Path) -> None:
    """Writes a master and the largest buffer of updates."""
    save_adapter(draw_adapter(0), folder / "master")
    (folder / "0").write_bytes(encode_adapter(draw_adapter(1), "f32"))
    for number in range(1, max(COUNTS)):
        os.link(folder / "0", folder / str(number))  # 1.6 GB of distinct files would measure the disk


def in_child(*words: str) -> dict[str, float]:
    """Returns what a fresh process found."""
    found: dict[str, float] = json.loads(last_line(run_module("benchmarks.speed.merge", "--child", *words)))
    return found


def over_runs(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, Spread]]:
    """Returns by case and measure what several runs came to."""
    return {
        case: {measure: spread([run[case][measure] for run in runs]) for measure in first}
        for case, first in runs[0].items()
    }


def measure_product(repeats: int) -> dict[str, Any]:
    """Measures all cases in turns."""
    return over_runs([{case: in_child("product", case) for case in BASES} for _ in range(repeats)])


def measure_factors(repeats: int, flower_python: str | None) -> dict[str, Any]:
    """Measures ours, and Flower's as multiples of ours, each pair from one turn.

    Raises:
        SystemExit: Flower has averaged something else.
    """
    seconds, ratios, version = [], [], ""
    for _ in range(repeats):
        ours = in_child("factors")
        seconds.append(ours["seconds"])
        if flower_python:
            flower = json.loads(last_line(run_module("benchmarks.speed.flower", python=flower_python)))
            if abs(flower["checksum"] - ours["checksum"]) > 1e-3 * (1 + abs(ours["checksum"])):
                raise SystemExit(f"Flower's sums add up to {flower['checksum']}, ours to {ours['checksum']}")
            ratios.append({way: took / ours["seconds"] for way, took in flower["seconds"].items()})
            version = flower["version"]
    ways = {way: spread([ratio[way] for ratio in ratios]) for way in (ratios[0] if ratios else ())}
    return {"seconds": spread(seconds), "flower": version, "flower_over_ours": ways}


def measure_memory(repeats: int) -> dict[str, Any]:
    """Measures the peak for each number of updates."""
    with tempfile.TemporaryDirectory() as folder:
        write_fleet(Path(folder))
        return over_runs(
            [{str(count): in_child("memory", folder, str(count)) for count in COUNTS} for _ in range(repeats)]
        )


def measure_tunefleet(repeats: int) -> dict[str, Any]:
    """Measures a merge that is taken at once and one that is refused, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(NUM_UPDATES):
            payload = encode_adapter(multiply(draw_adapter(1 + number), 0.01), "f16")
            Path(folder, str(number)).write_bytes(payload)
        return over_runs(
            [
                {verdict: in_child("tunefleet", verdict, folder) for verdict in ("taken", "refused")}
                for _ in range(repeats)
            ]
        )


def run_child(words: Sequence[str]) -> dict[str, float]:
    """Measures what `in_child` asked for."""
    match words:
        case ["product", case]:
            return merge_products(case)
        case ["memory", folder, count]:
            return sum_files(Path(folder), int(count))
        case ["tunefleet", verdict, folder]:
            return merge_guarded(verdict, Path(folder))
        case _:
            return sum_factors()


def show(part: str, found: dict[str, Any]) -> bool:
    """Prints a part's figures, and returns whether they are within the targets."""
    if part == "product":
        print(f"product: at most {MAX_SECONDS} s and {MAX_GROWTH} times the updates")
        for case, one in found.items():
            took = f"{one['seconds'].shown()} s, {one['cpu_seconds'].shown()} processor seconds"
            print(f"  {case}: {took}, grows by {one['growth'].shown()}")
        first = [found[case] for case in ("first", "later")]
        return all(
            one["seconds"].median <= MAX_SECONDS and one["growth"].median <= MAX_GROWTH for one in first
        )
    if part == "factors":
        print(f"factors: {found['seconds'].shown()} s")
        for way, one in found["flower_over_ours"].items():
            print(f"  Flower {found['flower']}, {way}: {one.shown()} times as long (at least {MIN_SPEEDUP})")
        return all(one.median >= MIN_SPEEDUP for one in found["flower_over_ours"].values())
    if part == "tunefleet":
        for verdict, one in found.items():
            took = f"{one['seconds'].shown()} s, {one['cpu_seconds'].shown()} processor seconds"
            print(f"tunefleet, {verdict}: {took}, {one['decodes'].shown()} decodes of an update (at most 1)")
        return all(one["decodes"].median <= 1 for one in found.values())
    for count, one in found.items():
        took = f"peak {one['peak_mb'].shown()} MB, {one['seconds'].shown()} s"
        print(f"memory: {count:>3} updates from files: {took}")
    few, *_, many = (one["peak_mb"].median for one in found.values())
    print(f"  peak of {COUNTS[-1]} over peak of {COUNTS[0]}: {many / few:.3f} (at most {MAX_PEAK_RATIO})")
    return bool(many / few <= MAX_PEAK_RATIO)


def main() -> int:
    """Runs the parts asked for, all without one; exit status 1 where a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help="see above; all without one")
    parser.add_argument("--flower-python", help="a python that has flwr")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(run_child(arguments.child)))
        return 0
    ways = {
        "product": lambda: measure_product(arguments.repeats),
        "factors": lambda: measure_factors(arguments.repeats, arguments.flower_python),
        "memory": lambda: measure_memory(arguments.repeats),
        "tunefleet": lambda: measure_tunefleet(arguments.repeats),
    }
    if unknown := set(arguments.parts) - set(ways):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(ways)}")
    found = {part: ways[part]() for part in arguments.parts or ways}
    if arguments.json:
        print(as_json({"load": os.getloadavg()[0], **found}))
        return 0
    is_met = [show(part, figures) for part, figures in found.items()]
    print(f"load at the end: {os.getloadavg()[0]:.2f}")
    return int(not all(is_met))


if __name__ == "__main__":
    sys.exit(main())
