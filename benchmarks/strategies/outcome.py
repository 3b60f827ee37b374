"""What a simulated run is told, and what it comes to: the records that results are kept as."""

from typing import NamedTuple

from msgspec import Struct

from benchmarks.strategies.workbench import Poison


class Settings(NamedTuple):
    """How long a run is, how often it is scored, and who is hostile."""

    num_updates: int
    score_every: int  # updates; the next version is scored
    seed: int
    poison: Poison | None = None
    poisoned: tuple[int, ...] = ()


class Point(Struct, frozen=True):
    """A version and what it took."""

    version: int
    time_s: float  # virtual
    num_updates: int  # trained and delivered so far, rejected ones included
    bytes_up: int
    bytes_down: int
    compute_s: float  # of all devices together, virtual
    calibration_loss: float
    loss: float | None  # on the test rows; None where it was not scored
    accuracy: float | None


class Outcome(Struct, frozen=True):
    """One run."""

    points: list[Point]
    weights: dict[str, float]  # every device that exists to the sum of its updates' weights
    slow_loss: float  # on the slowest quarter's own test rows, mean over devices and the last three scored
    slow_accuracy: float
    own_accuracy: float  # the same of all devices
    num_merges: int
    num_harmful: int  # merges after which the calibration loss was higher
    merge_s: float  # mean processor time of a merge, calibration included
    rejected: dict[str, int]
    staleness_mean: float  # of merged updates
    staleness_max: int
    num_lost: int  # tasks that a drop-out lost
    cpu_s: float  # processor time of the whole run
