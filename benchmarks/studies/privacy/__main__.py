"""What does privacy cost in loss, and what does a membership-inference attack still find?

Three households fine-tune the demo's model on their sentences and on codes that nobody could guess, four
versions of eight steps each, once for every kind of terms. An attacker who has the last version, or (an
honest but curious coordinator) a device's first update as it came, says which codes were trained on. For
every seed the fleet is trained in several worlds that differ in which codes are in; each is attacked in turn.

    loss       of the last version on held-out sentences, nats per label; lower is better
    version    AUC of the attack on the last version, and the share of members caught at 1 % false alarms
    update     the same on one update

Worlds that are done are kept in the folder, and a run that was cut off goes on there.

Run as: python -m benchmarks.studies.privacy [--seeds 5] [--worlds 4] [--out FOLDER] [--plot FILE] [--json]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct, structs

from benchmarks.measuring import Spread, as_json
from benchmarks.results import file_name, save_result
from benchmarks.studies.privacy.attack import Found, by_likelihood, by_threshold, stacked
from benchmarks.studies.privacy.secrets import NUM_CODES, NUM_SENTENCES, homes, members
from benchmarks.studies.privacy.world import (
    RANK,
    RECIPE,
    SCALE,
    STEPS,
    TARGETS,
    VERSIONS,
    Seen,
    first_adapter,
    num_entries,
    run_world,
)
from coordinator.demo.household import held_out
from coordinator.demo.plan import MODEL
from edge.backends import load_model
from edge.backends.contract import TrainableModel
from edge.privacy.accounting import compose, epsilon_of
from edge.privacy.terms import Terms

NUM_DEVICES, NUM_HELD_OUT, DELTA = 3, 24, 1e-5
KINDS: Mapping[str, Terms] = {
    "none": Terms(),
    "device, 0.1": Terms(unit="device", clip_norm=2.0, noise=0.1),
    "central, 0.1": Terms(unit="device", clip_norm=2.0, noise=0.1, at="coordinator"),
    "example, 0.5": Terms(unit="example", clip_norm=1.0, noise=0.5),
}
MEASURES = ("loss", "version_auc", "version_caught", "update_auc", "update_caught")


class Row(Struct, frozen=True):
    """What one kind of terms came to, seed by seed."""

    kind: str
    epsilon: float | None  # of all versions together; None: nothing bounds it
    loss: list[float]
    version_auc: list[float]
    version_caught: list[float]
    update_auc: list[float]
    update_caught: list[float]


class Summary(Struct, frozen=True):
    """All of them."""

    num_worlds: int
    num_entries: int
    loss_before: float  # of version 0, mean over seeds
    rows: list[Row]


def epsilon(terms: Terms) -> float | None:
    """Returns what the versions of a fleet cost each unit together; None where nothing bounds it."""
    if not terms.is_on or terms.noise == 0:
        return None
    return epsilon_of(compose([terms.mu(STEPS)] * VERSIONS), DELTA)


def world_of(model: TrainableModel, kind: str, seed: int, world: int, out: Path) -> Seen:
    """Returns a world, from an earlier run of the same settings where there was one."""
    settings = (KINDS[kind], RECIPE, VERSIONS, RANK, SCALE, TARGETS, NUM_DEVICES, NUM_SENTENCES, NUM_CODES)
    path = out / file_name(f"{kind}-{seed}-{world}", [*settings, NUM_HELD_OUT, seed, world])
    began = time.monotonic()
    if not path.exists():
        held = held_out(NUM_HELD_OUT, seed)
        fleet, is_in = homes(NUM_DEVICES, seed), members(NUM_DEVICES, seed, world)
        seen = run_world(model, KINDS[kind], fleet, is_in, held, first_adapter(model, seed))
        save_result(seen, path)
        print(f"seed {seed}, world {world}, {kind}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return msgspec.json.decode(path.read_bytes(), type=Seen)


def summarise(worlds: Mapping[str, Sequence[Sequence[Seen]]], entries: int) -> Summary:
    """Attacks every seed's worlds, and gathers what came out: kind, then seed, then world."""
    rows = []
    for kind, of_seeds in worlds.items():
        found = [_attacked(of_seed) for of_seed in of_seeds]
        rows.append(Row(kind, epsilon(KINDS[kind]), *([one[name] for one in found] for name in MEASURES)))
    first = next(iter(worlds.values()))
    before = statistics.fmean(of_seed[0].loss_before for of_seed in first)
    return Summary(len(first[0]), entries, before, rows)


def _attacked(worlds: Sequence[Seen]) -> dict[str, float]:
    is_in = np.array([one.is_member for one in worlds])
    version = _best(stacked([one.by_version for one in worlds]), is_in)
    update = _best(stacked([one.by_update for one in worlds]), is_in)
    loss = statistics.fmean(one.loss for one in worlds)
    return dict(zip(MEASURES, (loss, *version, *update), strict=True))


def _best(lowered: np.ndarray, is_in: np.ndarray) -> Found:
    """Returns the better of the two attackers, measure by measure: a defender has to reckon with either."""
    found = by_threshold(lowered, is_in), by_likelihood(lowered, is_in)
    return Found(max(one.auc for one in found), max(one.caught for one in found))


def show(summary: Summary) -> None:
    """Prints the table: mean, and from the lowest seed to the highest."""
    print(
        f"{summary.num_entries} entries; loss before {summary.loss_before:.2f}; {summary.num_worlds} worlds"
    )
    print(f"{'terms':<14}{'epsilon':>9}" + "".join(f"{name.replace('_', ' '):>24}" for name in MEASURES))
    for row in summary.rows:
        cost = "-" if row.epsilon is None else f"{row.epsilon:.0f}"
        print(f"{row.kind:<14}{cost:>9}" + "".join(f"{_shown(getattr(row, name)):>24}" for name in MEASURES))


def _shown(values: Sequence[float]) -> str:
    spread = Spread(statistics.fmean(values), min(values), max(values))
    return spread.shown(".2f")


def draw(summary: Summary, path: Path) -> None:
    """Draws what is lost and what is found.

    Raises:
        ImportError: The demo extra, which brings matplotlib, is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a heavy library, when it is asked for
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    places = range(len(summary.rows))
    for axes, names, label in zip(
        figure.subplots(1, 2),
        (("loss",), ("version_auc", "update_auc")),
        ("held-out loss, nats per label", "AUC of the attack; 0.5 guesses"),
        strict=True,
    ):
        for shift, name in enumerate(names):
            values = [getattr(row, name) for row in summary.rows]
            means = [statistics.fmean(one) for one in values]
            bars = [[mean - min(one) for mean, one in zip(means, values, strict=True)]]
            bars.append([max(one) - mean for mean, one in zip(means, values, strict=True)])
            at = [place + 0.15 * shift for place in places]
            axes.errorbar(at, means, bars, fmt="os"[shift], capsize=3, label=name.partition("_")[0])
        axes.set_xticks(list(places), [row.kind for row in summary.rows], rotation=20)
        axes.set_ylabel(label)
    figure.axes[0].axhline(summary.loss_before, color="grey", linestyle=":")
    figure.axes[1].axhline(0.5, color="grey", linestyle=":")
    figure.axes[1].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--worlds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("runs/privacy"))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model = load_model("torch", MODEL, precision="float32")
    worlds: dict[str, list[list[Seen]]] = {kind: [] for kind in KINDS}
    for seed in range(options.seeds):  # a run that is cut off has whole seeds
        for kind, of_seeds in worlds.items():
            of_seeds.append(
                [world_of(model, kind, seed, world, options.out) for world in range(options.worlds)]
            )
    summary = summarise(worlds, num_entries(first_adapter(model, 0)))
    if options.plot:
        draw(summary, options.plot)
    if options.json:
        print(as_json(structs.asdict(summary)))
    else:
        show(summary)


if __name__ == "__main__":
    main()
