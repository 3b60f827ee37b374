"""What a merge of 16 updates of 25.7 MB costs: rank 8 on 196 modules of 2048 x 2048, in float32.

`product`: seconds, processor seconds of all threads, and by how much the process grows, updates included, as
    a multiple of their own size. Cases: a `first` merge of updates from one version; a `later` one, which
    adds a carried remainder of rank 32; and a later one of updates from 16 versions, with 15 more bases.
`factors`: seconds of the sum, beside Flower's three ways (`flower.py`), in turns, on the same arrays;
    Flower's python is one that has it: `python3 -m venv DIR && DIR/bin/pip install flwr`.
`memory`: the peak of a sum in space `factors` of 4, 16 and 64 updates that are read from files, as the
    coordinator keeps them: it must not grow.

Every figure is the median over fresh processes, with the least and the greatest.

Run as: python -m benchmarks.speed.merge [product] [factors] [memory] [--repeats 5] [--json]
        [--flower-python PATH]
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.speed.flower import NUM_UPDATES, RANK, checksum, draw_arrays, time_runs
from converters.adapter import Factors, LoraAdapter
from converters.formats.canonical import load_adapter, save_adapter
from coordinator.strategies.base import State
from coordinator.strategies.factors import add_increments
from coordinator.strategies.product import add_products
from edge.protocol.codec import decode_adapter, encode_adapter

SCALE, REMAINDER_RANK = 2.0, 32
BASES = {"first": 1, "later": 1, "later, 16 versions": 16}  # versions that updates begin from
COUNTS = (4, 16, 64)
MAX_SECONDS, MAX_GROWTH, MIN_SPEEDUP = 2.0, 1.5, 5.0  # targets
MAX_PEAK_RATIO = 1.1  # the interpreter's own peak varies by a few MB
MB = 1e6


class Update(NamedTuple):
    """What a merge needs of one."""

    load_delta: Callable[[], LoraAdapter]
    load_base: Callable[[], LoraAdapter]


def draw_adapter(seed: int, rank: int = RANK) -> LoraAdapter:
    """The same arrays as Flower's."""
    arrays = draw_arrays(seed, rank)
    return LoraAdapter(
        {
            f"model.layers.{number:03}.q_proj": Factors(a, b, SCALE)
            for number, (a, b) in enumerate(zip(arrays[::2], arrays[1::2], strict=True))
        }
    )


def peak_bytes() -> int:
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def merge_products(case: str) -> dict[str, float]:
    """One merge, as cold as a coordinator's; the updates are drawn after the state was."""
    bases = [draw_adapter(100 + number) for number in range(BASES[case])]
    remainder = None if case == "first" else draw_adapter(99, REMAINDER_RANK)
    before_bytes = peak_bytes()
    deltas = [draw_adapter(1 + number) for number in range(NUM_UPDATES)]
    size_bytes = sum(4 * delta.num_parameters for delta in deltas)
    buffer = [
        Update(lambda delta=delta: delta, lambda base=base: base)
        for delta, base in zip(deltas, itertools.cycle(bases), strict=False)
    ]
    state, weights = State(0, bases[0], remainder), [1 / NUM_UPDATES] * NUM_UPDATES
    before, cpu_before = time.perf_counter(), time.process_time()
    add_products(state, buffer, weights, 1.0, REMAINDER_RANK)
    return {
        "seconds": time.perf_counter() - before,
        "cpu_seconds": time.process_time() - cpu_before,
        "growth": (peak_bytes() - before_bytes) / size_bytes,
    }


def sum_factors() -> dict[str, float]:
    """The mean of the updates, added to nothing."""
    deltas = [draw_adapter(1 + number) for number in range(NUM_UPDATES)]
    like = deltas[0]
    nothing = LoraAdapter({name: Factors(0 * one.a, 0 * one.b, one.scale) for name, one in like})
    buffer = [Update(lambda delta=delta: delta, lambda: nothing) for delta in deltas]
    weights = [1 / NUM_UPDATES] * NUM_UPDATES
    mean = add_increments(State(0, nothing), buffer, weights, 1.0).adapter
    seconds = time_runs(lambda: add_increments(State(0, nothing), buffer, weights, 1.0))
    return {
        "seconds": seconds,
        "checksum": checksum([array for _, one in mean for array in (one.a, one.b)]),
    }


def sum_files(folder: Path, count: int) -> dict[str, float]:
    """The sum of `count` updates from files."""
    master = load_adapter(folder / "master")
    buffer = [
        Update(
            lambda path=folder / str(number): decode_adapter(path.read_bytes(), like=master), lambda: master
        )
        for number in range(count)
    ]
    before = time.perf_counter()
    add_increments(State(0, master), buffer, [1 / count] * count, 1.0)
    return {"seconds": time.perf_counter() - before, "peak_mb": peak_bytes() / MB}


def write_fleet(folder: Path) -> None:
    """A master and the largest buffer of updates."""
    save_adapter(draw_adapter(0), folder / "master")
    (folder / "0").write_bytes(encode_adapter(draw_adapter(1), "f32"))
    for number in range(1, max(COUNTS)):
        os.link(folder / "0", folder / str(number))  # 1.6 GB of distinct files would measure the disk


def in_child(*words: str) -> dict[str, Any]:
    """What a fresh process found."""
    return run_json([sys.executable, "-m", "benchmarks.speed.merge", "--child", *words])


def run_json(command: Sequence[str]) -> dict[str, Any]:
    """The last line that a command prints."""
    found: dict[str, Any] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "all": sorted(values)}


def measure_product(repeats: int) -> dict[str, Any]:
    """By case; all cases in turns."""
    runs = [{case: in_child("product", case) for case in BASES} for _ in range(repeats)]
    return {case: {key: spread([run[case][key] for run in runs]) for key in runs[0][case]} for case in BASES}


def measure_factors(repeats: int, flower_python: str | None) -> dict[str, Any]:
    """Ours, and Flower's as multiples of ours, each pair from one turn.

    Raises:
        SystemExit: Flower has averaged something else.
    """
    seconds, ratios, version = [], [], ""
    for _ in range(repeats):
        ours = in_child("factors")
        seconds.append(ours["seconds"])
        if flower_python:
            flower = run_json([flower_python, "-m", "benchmarks.speed.flower"])
            if abs(flower["checksum"] - ours["checksum"]) > 1e-3 * (1 + abs(ours["checksum"])):
                raise SystemExit(f"Flower's sums add up to {flower['checksum']}, ours to {ours['checksum']}")
            ratios.append({way: took / ours["seconds"] for way, took in flower["seconds"].items()})
            version = flower["version"]
    ways = {way: spread([ratio[way] for ratio in ratios]) for way in (ratios[0] if ratios else ())}
    return {"seconds": spread(seconds), "flower": version, "flower_over_ours": ways}


def measure_memory(repeats: int) -> dict[str, Any]:
    """By number of updates."""
    with tempfile.TemporaryDirectory() as folder:
        write_fleet(Path(folder))
        runs = [{count: in_child("memory", folder, str(count)) for count in COUNTS} for _ in range(repeats)]
    return {
        str(count): {key: spread([run[count][key] for run in runs]) for key in runs[0][count]}
        for count in COUNTS
    }


def run_child(words: Sequence[str]) -> dict[str, float]:
    """What `in_child` asked for."""
    match words:
        case ["product", case]:
            return merge_products(case)
        case ["memory", folder, count]:
            return sum_files(Path(folder), int(count))
        case _:
            return sum_factors()


def show(part: str, found: dict[str, Any]) -> bool:
    """Prints a part's figures; whether they are within the targets."""
    if part == "product":
        print(f"product: at most {MAX_SECONDS} s and {MAX_GROWTH} times the updates")
        for case, one in found.items():
            took = f"{told(one['seconds'])} s, {told(one['cpu_seconds'])} processor seconds"
            print(f"  {case}: {took}, grows by {told(one['growth'])}")
        first = [found[case] for case in ("first", "later")]
        return all(
            one["seconds"]["median"] <= MAX_SECONDS and one["growth"]["median"] <= MAX_GROWTH for one in first
        )
    if part == "factors":
        print(f"factors: {told(found['seconds'])} s")
        for way, one in found["flower_over_ours"].items():
            print(f"  Flower {found['flower']}, {way}: {told(one)} times as long (at least {MIN_SPEEDUP})")
        return all(one["median"] >= MIN_SPEEDUP for one in found["flower_over_ours"].values())
    ratio = found[str(COUNTS[-1])]["peak_mb"]["median"] / found[str(COUNTS[0])]["peak_mb"]["median"]
    for count, one in found.items():
        print(
            f"memory: {count:>3} updates from files: peak {told(one['peak_mb'])} MB, {told(one['seconds'])} s"
        )
    print(f"  peak of {COUNTS[-1]} over peak of {COUNTS[0]}: {ratio:.3f} (at most {MAX_PEAK_RATIO})")
    return ratio <= MAX_PEAK_RATIO


def told(values: dict[str, Any]) -> str:
    """A median with its spread."""
    return f"{values['median']:.3g} ({values['all'][0]:.3g} to {values['all'][-1]:.3g})"


def main() -> int:
    """Runs the parts asked for, all without one; exit status 1 where a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help="product, factors, memory; all without one")
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
    }
    if unknown := set(arguments.parts) - set(ways):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(ways)}")
    found = {part: ways[part]() for part in arguments.parts or ways}
    if arguments.json:
        print(json.dumps({"load": os.getloadavg()[0], **found}))
        return 0
    is_met = [show(part, figures) for part, figures in found.items()]
    print(f"load at the end: {os.getloadavg()[0]:.2f}")
    return int(not all(is_met))


if __name__ == "__main__":
    sys.exit(main())
