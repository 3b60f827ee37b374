"""Is one way better than another? Differences paired by seed, with two intervals for their mean.

A seed fixes the split of the data, the devices' speeds, their accidents and the first adapter, so the
difference within a seed is the strategies' own. The percentile bootstrap (Efron, 1979) assumes no shape, but
from five pairs it is too narrow: its ends are means of the five values it was given. Student's interval
assumes normal differences and is the honest one there; both are reported, and a verdict needs both.
"""

import statistics
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

TAILS = 0.025, 0.975  # an interval of 95 % leaves as much out on either side
RESAMPLES = 10_000
SEED = 0


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
        """Whether both intervals exclude zero."""
        return self.student.excludes_zero and self.bootstrap.excludes_zero


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Returns the mean of `ours` minus `theirs`, pair by pair, and its intervals.

    Raises:
        ValueError: Fewer than two pairs, or unequal numbers of values.
    """
    differences = [our - their for our, their in zip(ours, theirs, strict=True)]
    if len(differences) < 2:
        raise ValueError(f"got {len(differences)} pairs, expected at least 2")
    return Difference(statistics.fmean(differences), student(differences), bootstrap(differences))


def student(values: Sequence[float]) -> Interval:
    """Returns Student's 95 % interval for the mean of normal values.

    Raises:
        ImportError: The bench extra, which brings SciPy, is not installed.
    """
    from scipy.stats import t  # a heavy library, when it is asked for

    mean, count = statistics.fmean(values), len(values)
    half = float(t.ppf(TAILS[1], count - 1)) * statistics.stdev(values) / count**0.5
    return Interval(mean - half, mean + half)


def bootstrap(values: Sequence[float]) -> Interval:
    """Returns the middle 95 % of the means of 10,000 resamples; the same values give the same interval."""
    rng = np.random.default_rng(SEED)
    places = rng.integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.asarray(values)[places].mean(1), TAILS)
    return Interval(float(low), float(high))
