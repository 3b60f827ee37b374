"""Training speed and peak memory of all backends: torch, MLX, and llama.cpp on quantised weights.

LoRA of rank 8 on all seven projections of a random LLaMA of 124.7 M parameters (how long a step takes does
not depend on what the weights know) and of the two real small models; one example of T tokens a step, all of
them labelled or the last 30 %, as a completion is. Each measurement is a process of its own with the
environment that the product gives its worker; contestants take turns (A B C A B C ...), and ratios are taken
to torch in float32 within the same round. Beside the wall clock stands the processor time of all threads,
for machines that others use at the same time. Memory is what lies in RAM at the peak, pages of a mapped file
included.

Losses are compared with torch's step by step: in float32 they are the same, elsewhere they tell how far
rounding carries a model that knows nothing.

`--flat STEPS` trains the smallest model on rows of one to eight examples of very unlike lengths instead, with
every contestant and every seed, and prints how much memory the process holds on the way, its peak, and the
slope of a straight line through what it held after the first third, when caches are full; the exit status is
1 where one grows, or holds far more at its peak than torch does in float32.
`--profile CONTESTANT` prints where the time goes.

Run as: python -m benchmarks.speed.backends [--quick] [--json] [--repeats 3] [--tokens 256 512] [--flat 1000]
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from benchmarks.measuring import Spread, as_json, last_line, run_module, spread
from benchmarks.models import find_model
from benchmarks.speed.steps import Measurement, Watched, Work
from converters.errors import TunefleetError
from edge.backends import resolve_backend
from edge.backends.contract import Precision

R = TypeVar("R", Measurement, Watched)
LARGE, SMALL, SMALLEST = "LLaMA-124M", ("stories260K", "tinystories-656K"), "LLaMA-2M"
COMPLETION = 0.3  # of an example's tokens
LARGE_STEPS, SMALL_STEPS, QUICK_STEPS = 3, 20, 1
FLAT_TOKENS = 512  # the longest example; the shortest has 2
MAX_SLOPE_MB = 32  # in 1,000 steps; one jump of the 13 MB that malloc keeps or hands back makes up to 30
MAX_PEAK = 1.75  # of torch's in float32 with the same seed: caches that fill at the start count, too
MB = 1e6
HEADING = (
    f"  {'':18}   tok/s  of torch's (low, high)   by cpu  MB loaded   at peak  of torch's  loss differs by"
)


class Contestant(NamedTuple):
    """A backend and the form of its weights."""

    name: str
    backend: str
    precision: Precision = "float32"
    quant: str = ""  # of the GGUF file


CONTESTANTS = (
    Contestant("torch f32", "torch"),
    Contestant("torch bf16", "torch", "bfloat16"),
    Contestant("MLX f32", "mlx"),
    Contestant("llama_cpp f32", "llama_cpp", quant="f32"),
    Contestant("llama_cpp q8_0", "llama_cpp", quant="q8_0"),
    Contestant("llama_cpp q4_K_M", "llama_cpp", quant="q4_K_M"),
)
RIVAL = CONTESTANTS[0].name
TARGETS = (  # contestant, model, least speed and most memory as multiples of torch's in float32
    ("llama_cpp q4_K_M", LARGE, 0.9, 0.25),
    *(("llama_cpp f32", name, 0.5, None) for name in SMALL),
)


class Case(NamedTuple):
    """What all contestants do."""

    model: str
    num_tokens: int
    labelled: float
    num_steps: int

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.model}, {self.num_tokens} tokens a step, {self.labelled:.0%} labelled"


def main() -> int:
    """Runs what is asked for; exit status 1 where a bound is broken."""
    options = parse_options()
    own = nullcontext(options.models_in) if options.models_in else tempfile.TemporaryDirectory()
    with own as name:
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if options.flat:
            flat = [one for one in CONTESTANTS if not options.only or one.name in options.only]
            return show_flat(flat, folder, options.flat, options.repeats, is_json=options.json)
        if options.profile:
            return profile(options.profile, make_cases(options)[0], folder)
        chosen = [one for one in CONTESTANTS if not options.only or one.name in {RIVAL, *options.only}]
        report = run_rounds(chosen, make_cases(options), folder, 1 if options.quick else options.repeats)
    print(as_json(report) if options.json else render(report))
    return 0


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    names = [one.name for one in CONTESTANTS]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of one step")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, or with --flat seeds")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512], help="of a step")
    parser.add_argument("--models", nargs="+", choices=[LARGE, *SMALL], default=[LARGE, *SMALL])
    parser.add_argument("--only", nargs="+", choices=names, help=f"these, and {RIVAL} but with --flat")
    parser.add_argument("--models-in", metavar="FOLDER", help="keep the models that are made, 1.3 GB")
    parser.add_argument("--flat", type=int, metavar="STEPS", help="watch the memory instead")
    parser.add_argument("--profile", choices=names, help="on the first model, instead")
    return parser.parse_args()


def make_cases(options: argparse.Namespace) -> list[Case]:
    """Returns all lengths on the large model, the first one on the others and with fewer labels."""
    first, cases = options.tokens[0], []
    for model in options.models:
        is_large = model == LARGE
        num_steps = QUICK_STEPS if options.quick else LARGE_STEPS if is_large else SMALL_STEPS
        cases += [Case(model, count, 1.0, num_steps) for count in (options.tokens if is_large else [first])]
        cases += [Case(model, first, COMPLETION, num_steps)] * is_large
    return cases


def run_rounds(
    contestants: Sequence[Contestant], cases: Sequence[Case], folder: Path, repeats: int
) -> dict[str, Any]:
    """Measures by case and contestant; whoever fails once is asked no more and says why."""
    found: dict[Case, dict[str, list[Measurement]]] = {case: {} for case in cases}
    skipped: dict[Case, dict[str, str]] = {case: {} for case in cases}
    for turn in range(repeats):
        for case in cases:
            for one in contestants:
                if one.name in skipped[case]:
                    continue
                print(f"round {turn + 1} of {repeats}: {case.title}: {one.name}", file=sys.stderr)
                try:
                    measurement = measure(one, case, folder)
                except TunefleetError as error:
                    skipped[case][one.name] = str(error)
                    found[case].pop(one.name, None)
                else:
                    found[case].setdefault(one.name, []).append(measurement)
    return {case.title: {"rows": compare(found[case]), "skipped": skipped[case]} for case in cases}


def measure(contestant: Contestant, case: Case, folder: Path) -> Measurement:
    """Measures a contestant once, in a process of its own.

    Raises:
        TunefleetError: It cannot be had, and why.
    """
    return run_steps("measure", make_work(contestant, case, folder), Measurement)


def make_work(contestant: Contestant, case: Case, folder: Path) -> Work:
    """Returns what the child is told; makes its model where that is not done yet."""
    base = find_model(case.model, contestant.quant, folder)
    resolve_backend(contestant.backend, Path(base))
    return Work(
        str(base), contestant.backend, contestant.precision, case.num_tokens, case.labelled, case.num_steps
    )


def run_steps(what: str, work: Work, kind: type[R]) -> R:
    """Lets `steps.py` do a piece of work, and returns the record in the last line that it prints."""
    return msgspec.json.decode(last_line(_run_steps(what, work)), type=kind)


def _run_steps(what: str, work: Work) -> str:
    return run_module("benchmarks.speed.steps", what, msgspec.json.encode(work).decode())


def compare(found: dict[str, list[Measurement]]) -> dict[str, Any]:
    """Returns each one's medians, and the spread of its ratios within each round."""
    rival = found.get(RIVAL, [])
    return {name: _row(ours, rival) for name, ours in found.items()}


def _row(ours: Sequence[Measurement], theirs: Sequence[Measurement]) -> dict[str, Any]:
    pairs = list(zip(ours, theirs, strict=False))
    gaps = [abs(a - b) for one, other in pairs[:1] for a, b in zip(one.losses, other.losses, strict=True)]
    return {
        "tokens_per_s": statistics.median(one.tokens_per_s for one in ours),
        "speed_ratio": _ratio(pairs, "tokens_per_s"),
        "cpu_ratio": _ratio(pairs, "tokens_per_cpu_s"),
        "loaded_mb": statistics.median(one.loaded_bytes for one in ours) / MB,
        "peak_mb": statistics.median(one.peak_bytes for one in ours) / MB,
        "memory_ratio": _ratio(pairs, "peak_bytes"),
        "largest_loss_difference": max(gaps, default=None),
        "rounds": ours,
    }


def _ratio(pairs: Sequence[tuple[Measurement, Measurement]], measure: str) -> Spread | None:
    """Returns the spread of one side over the other, round by round; None where there is no other."""
    ratios = [getattr(one, measure) / getattr(other, measure) for one, other in pairs]
    return spread(ratios) if ratios else None


def render(report: dict[str, Any]) -> str:
    """Returns tables for people, and what was aimed at."""
    lines = []
    for title, case in report.items():
        lines += ["", title]
        lines.append(HEADING)
        lines += [f"  {name:18} {_render_row(row)}" for name, row in case["rows"].items()]
        lines += [f"  {name:18} skipped: {reason}" for name, reason in case["skipped"].items()]
    return "\n".join([*lines[1:], "", *(_render_target(report, *target) for target in TARGETS)])


def _render_row(row: dict[str, Any]) -> str:
    figures, memory = f"{row['tokens_per_s']:7,.0f}", f"{row['loaded_mb']:9,.0f} {row['peak_mb']:9,.0f}"
    if row["speed_ratio"] is None:
        return f"{figures} {'':33}{memory}"
    speed = row["speed_ratio"]
    ratio = f"{speed.median:6.2f} ({speed.lowest:5.2f}, {speed.highest:5.2f})"
    by_cpu, of_memory = row["cpu_ratio"].median, row["memory_ratio"].median
    compared = f"{of_memory:11.3f} {row['largest_loss_difference']:16.1e}"
    return f"{figures} {ratio:>23} {by_cpu:8.2f} {memory} {compared}"


def _render_target(report: dict[str, Any], name: str, model: str, speed: float, memory: float | None) -> str:
    wanted = f"at least {speed} of torch's speed" + (f", at most {memory} of its memory" if memory else "")
    case = next((case for title, case in report.items() if title.startswith(f"{model},")), None)
    row = case and case["rows"].get(name)
    if not row or not row["speed_ratio"]:
        return f"target, {name} on {model}: {wanted}: not measured"
    is_met = row["speed_ratio"].median >= speed and row["memory_ratio"].median <= (memory or float("inf"))
    return f"target, {name} on {model}: {wanted}: {'met' if is_met else 'missed'}"


def show_flat(
    contestants: Sequence[Contestant], folder: Path, num_steps: int, num_seeds: int, *, is_json: bool
) -> int:
    """Prints each one's memory on the way, seed after seed; exit status 1 where one breaks a bound."""
    rows = []
    for one in contestants:
        for seed in range(num_seeds):
            work = make_work(one, Case(SMALLEST, FLAT_TOKENS, COMPLETION, num_steps), folder)
            watched = run_steps("flat", msgspec.structs.replace(work, seed=seed), Watched)
            rows.append(flat_row(one.name, seed, watched))
            if not is_json:
                print(_render_flat(rows[-1]), flush=True)
    faults = list(flat_faults(rows))
    print(as_json(rows) if is_json else "\n".join(faults or ["all bounds hold"]))
    return int(bool(faults))


def flat_faults(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yields which runs break which bound."""
    peaks = {row["seed"]: row["peak_mb"] for row in rows if row["contestant"] == RIVAL}
    for row in rows:
        name, slope = f"{row['contestant']} seed {row['seed']}", row["slope_mb_per_1000_steps"]
        if slope > MAX_SLOPE_MB:
            yield f"{name} grows by {slope:.0f} MB in 1,000 steps; expected at most {MAX_SLOPE_MB}"
        if row["peak_mb"] > MAX_PEAK * peaks.get(row["seed"], float("inf")):
            most = MAX_PEAK * peaks[row["seed"]]
            yield f"{name} holds {row['peak_mb']:.0f} MB at its peak; expected at most {most:.0f}"


def flat_row(name: str, seed: int, watched: Watched) -> dict[str, Any]:
    """Returns one run's figures; the slope is that of least squares, after the first third of the steps."""
    steps, sizes = (np.array(column, np.float64) for column in zip(*watched.held, strict=True))
    later = steps >= steps[-1] / 3
    slope = float(np.polyfit(steps[later], sizes[later], 1)[0])
    return {
        "contestant": name,
        "seed": seed,
        "held_mb": [round(size / MB, 1) for size in sizes],
        "peak_mb": watched.peak_bytes / MB,
        "slope_mb_per_1000_steps": 1000 * slope / MB,
    }


def _render_flat(row: dict[str, Any]) -> str:
    held = row["held_mb"]
    return (
        f"{row['contestant']:18} seed {row['seed']}: {held[0]:7.1f} MB after a twentieth, {held[-1]:7.1f} at "
        f"the end, peak {row['peak_mb']:7.1f}; {row['slope_mb_per_1000_steps']:+6.1f} MB in 1,000 steps"
    )


def profile(name: str, case: Case, folder: Path) -> int:
    """Prints where the contestant's time goes."""
    contestant = next(one for one in CONTESTANTS if one.name == name)
    print(_run_steps("profile", make_work(contestant, case, folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
