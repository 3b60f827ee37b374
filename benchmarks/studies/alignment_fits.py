"""Which fit of the alignment is better, and what it is worth: on the groups that fleets really merge.

A fleet of the simulation runs under FedBuff, with stale updates. At every few merges, each old group of the
buffer is fitted by every solver, and put aside again. Told are the share of |f(W_t) - f(W_k + u)|^2 that is
left (median), forward passes and seconds (median), and how the test loss changes when a quarter of the
carried mean update is added to the present version instead of the mean update as it is (mean and standard
error).

Adam is the rival that the coordinator does not have: its steps need a learning rate, and one more pass each
tells which iterate was best.

Run as: python -m benchmarks.studies.alignment_fits dolly|household [--updates 160] [--groups 40]
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.strategies.jobs import make_config
from benchmarks.strategies.lessons import make_lesson
from benchmarks.strategies.lineup import Entry, Setting, Size
from benchmarks.strategies.outcome import Settings
from benchmarks.strategies.population import make_population
from benchmarks.strategies.simulation import Fleet
from benchmarks.strategies.workbench import Workbench, load_base, memory_folder
from converters.adapter import LoraAdapter
from converters.arithmetic import add, multiply, square
from coordinator.calibration import Calibration
from coordinator.strategies.contract import Contribution, Pace, Report, State, Strategy, Waiting
from coordinator.strategies.pipeline_state import PipelineState, begin
from coordinator.strategies.stages.align import Misfit, Vector, carry_over, fit_maps, group_misfit

WEIGHT = 0.25  # of a group in the step whose loss is told
EVERY = 4  # merges
BUFFER = 4  # updates


class Found(NamedTuple):
    """One solver on one group."""

    left: float  # share of |residual|^2
    num_passes: int
    seconds: float
    gain: float  # change of the test loss against the identity, nats per label; below 0 is better


class Counted:
    """A calibration set that counts forward passes; a way back counts as one."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.loss, self.gradient = calibration.loss, calibration.gradient
        self.num_passes = 0

    def features(self, adapter: LoraAdapter) -> NDArray[np.float32]:
        """Counts a pass; see `Calibrator.features`."""
        self.num_passes += 1
        return self.calibration.features(adapter)

    def pull_back(self, adapter: LoraAdapter, cotangent: NDArray[np.float32]) -> LoraAdapter:
        """Counts two passes; see `Calibrator.pull_back`."""
        self.num_passes += 2
        return self.calibration.pull_back(adapter, cotangent)


class Watched:
    """A strategy that measures the fits on what it is about to merge."""

    def __init__(self, strategy: Strategy, bench: Workbench, num_groups: int) -> None:
        self.strategy, self.bench, self.num_groups = strategy, bench, num_groups
        self.name = strategy.name
        self.calibrator = Counted(bench.calibration)
        self.found: dict[str, list[Found]] = {}
        self.num_measured = 0

    def pace(self, waiting: Sequence[Waiting], num_devices: int) -> Pace:
        """See `Strategy.pace`."""
        return self.strategy.pace(waiting, num_devices)

    def merge(self, state: State, buffer: Sequence[Contribution]) -> tuple[State, Report]:
        """See `Strategy.merge`."""
        if state.version % EVERY == 0:
            self._measure(state, buffer)
        return self.strategy.merge(state, buffer)

    def _measure(self, state: State, buffer: Sequence[Contribution]) -> None:
        pipeline = PipelineState(state, begin(buffer))
        target = self.calibrator.features(state.adapter)
        for places in pipeline.groups().values():
            items = [pipeline.items[place] for place in places]
            if items[0].source.staleness > 0 and self.num_measured < self.num_groups:
                self.num_measured += 1
                self._measure_group(state, group_misfit(items, target, self.calibrator))

    def _measure_group(self, state: State, misfit: Misfit) -> None:
        as_it_is = square(misfit.residual(misfit.identity))
        loss = self._loss(state, misfit.mean)
        for name, solve in SOLVERS.items():
            self.calibrator.num_passes, began = 0, time.perf_counter()
            vector = solve(misfit)
            seconds, num_passes = time.perf_counter() - began, self.calibrator.num_passes
            carried = carry_over(misfit.mean, misfit.maps(vector))
            left = square(misfit.residual(vector)) / as_it_is
            gain = self._loss(state, carried) - loss
            self.found.setdefault(name, []).append(Found(left, num_passes, seconds, gain))

    def _loss(self, state: State, update: LoraAdapter) -> float:
        stepped = add(state.adapter, multiply(update, WEIGHT))
        return self.bench.score(stepped, self.bench.test).loss


def fit_by_adam(misfit: Misfit, num_steps: int, lr: float) -> Vector:
    """Returns the best iterate of Adam (Kingma & Ba, arXiv 1412.6980) from the identity."""
    vector = best = misfit.identity
    first = second = np.zeros_like(vector)
    least = np.inf
    for step in range(1, num_steps + 2):
        residual = misfit.residual(vector)
        if square(residual) < least:
            least, best = square(residual), vector
        if step <= num_steps:
            gradient = -misfit.descent(vector, residual)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            root = np.sqrt(second / (1 - 0.999**step)) + 1e-30
            vector = vector - lr * first / (1 - 0.9**step) / root
    return best


SOLVERS: dict[str, Callable[[Misfit], Vector]] = {
    "1 step": lambda misfit: fit_maps(misfit, 1),
    "2 steps": lambda misfit: fit_maps(misfit, 2),
    "3 steps": lambda misfit: fit_maps(misfit, 3),
    "Adam, 4 steps of 0.03": lambda misfit: fit_by_adam(misfit, 4, 0.03),
    "Adam, 4 steps of 0.1": lambda misfit: fit_by_adam(misfit, 4, 0.1),
}


def measure(lesson_name: str, num_updates: int, num_groups: int, seed: int = 0) -> dict[str, list[Found]]:
    """Measures every solver, group by group."""
    lesson = make_lesson(lesson_name, seed)
    entry = Entry("fedbuff", {"strategy": "fedbuff", "space": "factors"}, Setting(lesson_name, "lognormal"))
    with memory_folder() as folder:
        bench = Workbench(lesson, load_base(lesson.base), folder)
        config = make_config(entry, lesson, Size(num_updates, num_updates, BUFFER), bench.calibration_path)
        population = make_population("lognormal", len(lesson.devices), seed)
        fleet = Fleet(bench, population, config, Settings(num_updates, num_updates, seed))
        watched = Watched(fleet.strategy, bench, num_groups)
        fleet.strategy = watched
        fleet.run()
    return watched.found


def main() -> int:
    """Prints a row for each solver."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lesson")
    parser.add_argument("--updates", type=int, default=160)
    parser.add_argument("--groups", type=int, default=40)
    arguments = parser.parse_args()
    print(f"| {arguments.lesson} | left | passes | seconds | test loss |\n|---|---|---|---|---|")
    for name, rows in measure(arguments.lesson, arguments.updates, arguments.groups).items():
        left, num_passes, seconds, _ = np.median(rows, axis=0)
        gains = np.array([row.gain for row in rows])
        error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else np.nan
        told = f"{gains.mean():+.4f} ± {error:.4f}"
        print(f"| {name} | {left:.2f} | {num_passes:.0f} | {seconds:.2f} | {told} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
