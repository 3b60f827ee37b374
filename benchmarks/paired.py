"""Is one strategy better than another? Differences paired by seed, with two intervals for their mean.

A seed fixes the split of the data, the devices' speeds, their accidents and the first adapter, so the
difference within a seed is the strategies' own. The percentile bootstrap (Efron, 1979) assumes no shape, but
from five pairs it is too narrow: its ends are means of the five values it was given. Student's interval
assumes normal differences and is the honest one there; both are reported, and a verdict needs both.
"""

import statistics
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from coordinator.observers.status import jain_index

RESAMPLES = 10_000
SEED = 0
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 % quantiles, from 1 df


class Interval(Struct, frozen=True):
    """From `low` to `high`, both belonging to it."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether all of it lies on one side."""
        return self.low > 0 or self.high < 0


class Difference(Struct, frozen=True):
    """A mean of paired differences, with its 95 % intervals."""

    mean: float
    student: Interval
    bootstrap: Interval

    @property
    def is_significant(self) -> bool:
        """Both intervals exclude zero."""
        return self.student.excludes_zero and self.bootstrap.excludes_zero


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Of `ours` minus `theirs`, pair by pair.

    Raises:
        ValueError: Fewer than two or more than ten pairs, or unequal numbers of values.
    """
    differences = [our - their for our, their in zip(ours, theirs, strict=True)]
    if not 2 <= len(differences) <= len(STUDENT) + 1:
        raise ValueError(f"got {len(differences)} pairs, expected 2 to {len(STUDENT) + 1}")
    mean = statistics.fmean(differences)
    half = STUDENT[len(differences) - 2] * statistics.stdev(differences) / len(differences) ** 0.5
    return Difference(mean, Interval(mean - half, mean + half), bootstrap(differences))


def bootstrap(values: Sequence[float]) -> Interval:
    """The middle 95 % of the means of 10,000 resamples; the same values give the same interval."""
    rng = np.random.default_rng(SEED)
    places = rng.integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.asarray(values)[places].mean(1), (0.025, 0.975))
    return Interval(float(low), float(high))


def jain(values: Sequence[float]) -> float:
    """Jain's index, (Σx)² / (n Σx²) (Jain, Chiu & Hawe, 1984): 1 for equal shares, 1/n for one taking all."""
    return jain_index(values) or 0.0
