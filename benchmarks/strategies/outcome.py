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


class Point(Struct, frozen=True, kw_only=True):
    """A version and what it took; one machine with all rows at once takes no virtual time."""

    version: int
    num_updates: int  # trained and delivered so far, rejected ones included
    calibration_loss: float
    loss: float | None  # on the test rows; None where it was not scored
    accuracy: float | None
    time_s: float = 0.0  # virtual
    bytes_up: int = 0
    bytes_down: int = 0
    compute_s: float = 0.0  # of all devices together, virtual

    @property
    def megabytes(self) -> float:
        """Sent and received by all devices so far."""
        return (self.bytes_up + self.bytes_down) / 1e6


class Outcome(Struct, frozen=True, kw_only=True):
    """One run; what has a default, a fleet alone has."""

    points: list[Point]
    slow_loss: float  # on the slowest quarter's own test rows, mean over devices and the last three scored
    slow_accuracy: float
    own_accuracy: float  # the same of all devices
    cpu_s: float  # processor time of the whole run
    weights: dict[str, float] = {}  # every device that exists to the sum of its updates' weights
    num_merges: int = 0
    num_harmful: int = 0  # merges after which the calibration loss was higher
    merge_s: float = 0.0  # mean processor time of a merge, calibration included
    rejected: dict[str, int] = {}
    staleness_mean: float = 0.0  # of merged updates
    staleness_max: int = 0
    num_lost: int = 0  # tasks that a drop-out lost
