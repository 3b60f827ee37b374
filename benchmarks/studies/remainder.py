"""Does it help to carry what a merge in space `product` truncates, and at what weight?

A toy fleet whose optimum is known: device i holds a matrix T_i of 32 x 32 and trains factors of rank 4 by
gradient descent on |b a - T_i|^2 / 2, with noise in each gradient; the coordinator merges by `add_products`.
Measured is the distance of its b a to the mean of the T_i.

`stale`: unlike devices, four of twelve in each version, trained from up to 4 versions before.
`short`: one device in each version, a tenth of its change is taken, and targets change halfway.

Run as: python -m benchmarks.studies.remainder [--seeds 6] [--json]
"""

import argparse
import json
import sys
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from converters.adapter import Factors, LoraAdapter, initial_adapter
from coordinator.strategies.contract import State
from coordinator.strategies.merges.product import add_products

WIDTH, RANK, REMAINDER_RANK, NUM_DEVICES, NOISE = 32, 4, 32, 12, 0.5
DECAYS = (0.0, 0.5, 0.8, 0.9, 1.0)
Matrix = NDArray[np.float64]


class Fleet(NamedTuple):
    """How devices train and are merged."""

    num_updates: int  # of each version
    server_lr: float
    local_steps: int
    local_lr: float
    max_staleness: int
    num_versions: int
    has_change: bool  # of the common target, halfway


FLEETS = {
    "stale": Fleet(4, 1.0, 20, 0.1, 4, 60, has_change=False),
    "short": Fleet(1, 0.1, 30, 0.1, 0, 200, has_change=True),
}


class Change(NamedTuple):
    """What a merge needs of an update."""

    base: LoraAdapter
    delta: LoraAdapter

    def load_base(self) -> LoraAdapter:
        """Returns the adapter as dispatched."""
        return self.base

    def load_delta(self) -> LoraAdapter:
        """Returns the increments."""
        return self.delta


def draw_target(rng: np.random.Generator, rank: int) -> Matrix:
    """Draws a target of norm 1."""
    target: Matrix = rng.standard_normal((WIDTH, rank)) @ rng.standard_normal((rank, WIDTH))
    return target / np.linalg.norm(target)


def train(base: LoraAdapter, target: Matrix, fleet: Fleet, rng: np.random.Generator) -> Change:
    """Takes some steps of gradient descent from `base`."""
    old = base.modules["m"]
    a, b = old.a.astype(np.float64), old.b.astype(np.float64)
    for _ in range(fleet.local_steps):
        gradient = b @ a - target + NOISE / WIDTH * rng.standard_normal((WIDTH, WIDTH))
        a, b = a - fleet.local_lr * b.T @ gradient, b - fleet.local_lr * gradient @ a.T
    return Change(
        base, LoraAdapter({"m": Factors((a - old.a).astype(np.float32), (b - old.b).astype(np.float32), 1.0)})
    )


def simulate(fleet: Fleet, decay: float, seed: int) -> dict[str, float]:
    """Measures distances over the second half and the last ten versions, and the remainder, in steps."""
    rng = np.random.default_rng(seed)
    common, own = [draw_target(rng, 4) for _ in range(2)], [draw_target(rng, 2) for _ in range(NUM_DEVICES)]
    history = [initial_adapter({"m": (WIDTH, WIDTH)}, rank=RANK, scale=1.0, seed=seed)]
    state, distances, sizes = State(0, history[0]), [], []
    for version in range(fleet.num_versions):
        shared = common[int(fleet.has_change and 2 * version >= fleet.num_versions)]
        bases = [
            history[-1 - min(version, int(back))]
            for back in rng.integers(0, fleet.max_staleness + 1, fleet.num_updates)
        ]
        chosen = rng.choice(NUM_DEVICES, fleet.num_updates, replace=False)
        buffer = [
            train(base, shared + own[device], fleet, rng) for base, device in zip(bases, chosen, strict=True)
        ]
        total = add_products(
            state, buffer, [fleet.server_lr * (1 / len(buffer))] * len(buffer), REMAINDER_RANK, decay
        ).at(1.0)
        state = State(version + 1, total.adapter, total.remainder)
        history.append(total.adapter)
        merged = total.adapter.modules["m"]
        distances.append(float(np.linalg.norm(merged.b @ merged.a - shared - sum(own) / NUM_DEVICES)))
        sizes.append(total.remainder_norm / total.step_norm)
    return {
        "second half": fmean(distances[len(distances) // 2 :]),
        "end": fmean(distances[-10:]),
        "remainder": fmean(sizes[-10:]),
    }


def main() -> int:
    """Prints a table by fleet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {
        name: {decay: [simulate(fleet, decay, seed) for seed in range(arguments.seeds)] for decay in DECAYS}
        for name, fleet in FLEETS.items()
    }
    if arguments.json:
        print(json.dumps(found))
        return 0
    for name, by_decay in found.items():
        print(f"{name}, means of {arguments.seeds} seeds")
        for decay, runs in by_decay.items():
            means = ", ".join(f"{key} {fmean(run[key] for run in runs):.4f}" for key in runs[0])
            print(f"  decay {decay}: {means}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
