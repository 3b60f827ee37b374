"""Whom a simulated fleet consists of: how fast each device computes and sends, and when it goes away.

    lognormal   seconds a token are log-normal around the median, sigma 1: the 5th and the 95th percentile are
                27 times apart
    400x        quantiles of a log-uniform law, the slowest exactly 400 times slower than the fastest. Real
                fleets report back after minutes, hours or days (Hard et al., arXiv 2403.09086), which is two
                to three orders of magnitude; the law between the ends is ours
    traces      tokens/s as `tunefleet bench device --json` measured them, replayed task by task

Which device gets which speed is drawn by the seed, so that no kind of data is always the slow one. Every
number follows from (seed, device, count of its tasks) alone and not from what a strategy did before: fleets
under different strategies meet the same accidents.
"""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from edge.errors import DataError

PopulationName = Literal["lognormal", "400x", "traces"]
SIGMA = 1.0  # of the log-normal law, in nats
SPREAD = 400.0  # slowest to fastest
MEDIAN_S_PER_TOKEN = 1 / 200  # a task of 1,000 tokens in 5 s, its transfers in 0.3 s: compute decides
JITTER = 0.1  # standard deviation of a task's log duration around its device's own
MEDIAN_BYTES_PER_S = 1e6  # of the link, either way; log-normal with LINK_SIGMA
LINK_SIGMA = 1.0
MEAN_AWAY = 2.0  # mean absence, in durations of the task it interrupted; exponential
LOST = 0.5  # share of drop-outs that lose the task's work: the machine was off, not asleep


class Trace(Struct, frozen=True):
    """What `tunefleet bench device --json` writes; further fields are ignored."""

    device: str
    backend: str
    model: str
    tokens_per_s: list[float]


class Machine(NamedTuple):
    """One device of the fleet, without its data."""

    name: str
    s_per_token: tuple[float, ...]  # of its tasks in turn, from the start again after the last
    bytes_per_s: float


class Accident(NamedTuple):
    """A drop-out within a task."""

    at: float  # share of the task's duration that was done
    away: float  # durations of the task until the device is back
    is_lost: bool  # the work is gone; else it goes on where it stopped


class Population(NamedTuple):
    """All devices, and what befalls them."""

    machines: tuple[Machine, ...]
    drop_out: float  # probability in each task
    seed: int

    def duration_s(self, device: int, number: int, num_tokens: int) -> float:
        """Returns the seconds that a device computes on its task `number`, counted from 0."""
        speeds = self.machines[device].s_per_token
        jitter = math.exp(self._rng("jitter", device, number).gauss(0, JITTER)) if len(speeds) == 1 else 1.0
        return num_tokens * speeds[number % len(speeds)] * jitter

    def accident(self, device: int, number: int) -> Accident | None:
        """Returns what interrupts its task `number`, if anything does."""
        rng = self._rng("accident", device, number)
        if rng.random() >= self.drop_out:
            return None
        return Accident(rng.random(), rng.expovariate(1 / MEAN_AWAY), rng.random() < LOST)

    def slowest(self, share: float) -> list[int]:
        """Returns the slowest devices, `share` of all and at least one."""
        means = [sum(machine.s_per_token) / len(machine.s_per_token) for machine in self.machines]
        order = sorted(range(len(means)), key=lambda index: means[index])
        return order[-max(1, round(share * len(order))) :]

    def _rng(self, what: str, device: int, number: int) -> random.Random:
        return random.Random(f"{what} {self.seed} {device} {number}")


def make_population(
    name: PopulationName, num_devices: int, seed: int, *, drop_out: float = 0.0, traces: Sequence[Trace] = ()
) -> Population:
    """Draws a fleet of `num_devices`.

    Raises:
        DataError: Population `traces` without a trace.
    """
    if name == "traces":
        if not traces:
            raise DataError(
                "population traces needs at least one trace, got none; "
                "`tunefleet bench device --json` writes them, --traces FOLDER names where they lie"
            )
        rows = [tuple(1 / speed for speed in trace.tokens_per_s) for trace in traces]
        speeds = [rows[index % len(rows)] for index in range(num_devices)]
    else:
        speeds = [(MEDIAN_S_PER_TOKEN * factor,) for factor in factors(name, num_devices)]
    rng = random.Random(f"population {seed}")
    rng.shuffle(speeds)
    links = [MEDIAN_BYTES_PER_S * math.exp(rng.gauss(0, LINK_SIGMA)) for _ in speeds]
    machines = [
        Machine(f"device-{index}", speed, link)
        for index, (speed, link) in enumerate(zip(speeds, links, strict=True))
    ]
    return Population(tuple(machines), drop_out, seed)


def factors(name: Literal["lognormal", "400x"], num_devices: int) -> list[float]:
    """Returns how many times as long as the median device each takes, fastest first.

    Both laws are taken at their quantiles rather than drawn: ten drawn devices would often not hold the
    spread that the fleet is named after.
    """
    if name == "lognormal":
        law = NormalDist(0, SIGMA)
        return [math.exp(law.inv_cdf((index + 0.5) / num_devices)) for index in range(num_devices)]
    places = [index / max(1, num_devices - 1) - 0.5 for index in range(num_devices)]
    return [SPREAD**place for place in places]


def load_traces(folder: Path) -> list[Trace]:
    """Reads all `*.json` of a folder, in order of their names.

    Raises:
        DataError: A file is no trace, or has a speed that is not above 0.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            trace = msgspec.json.decode(path.read_bytes(), type=Trace)
        except msgspec.MsgspecError as cause:
            raise DataError(f"{path}: is no device trace: {cause}") from cause
        if not trace.tokens_per_s or not min(trace.tokens_per_s) > 0:
            raise DataError(f"{path}: tokens_per_s must hold numbers above 0, got {trace.tokens_per_s[:5]}")
        found.append(trace)
    return found
