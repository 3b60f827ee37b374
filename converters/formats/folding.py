"""One rank and one scale for modules that have several, without any rounding.

A smaller rank is filled up with zeros, and a scale that differs by a power of two goes into `b`. Formats that
know one rank or one scale for the whole adapter write that, and note beside it what each module had.
"""

import math
from collections import Counter
from collections.abc import Iterable

import msgspec
import numpy as np

from converters.adapter import Array, Factors


class Originals(msgspec.Struct, frozen=True):
    """What was filled up and folded: module to its true rank, and to its true scale."""

    ranks: dict[str, int] = {}
    scales: dict[str, float] = {}


def fill(factors: Factors, rank: int) -> Factors:
    """Fills the same update up to `rank` rows of `a`, at least as many as there are."""
    more = rank - factors.rank
    a, b = np.pad(factors.a, ((0, more), (0, 0))), np.pad(factors.b, ((0, 0), (0, more)))
    return Factors(a, b, factors.scale)


def unfill(factors: Factors, rank: int) -> Factors:
    """Takes the first `rank` rows of `a`, if the others are zeros still; otherwise all."""
    a, b, scale = factors
    is_filled = 0 < rank < factors.rank and not a[rank:].any() and not b[:, rank:].any()
    return Factors(a[:rank], b[:, :rank], scale) if is_filled else factors


def fold(b: Array, scale: float, other: float) -> Array | None:
    """Returns `b * scale / other`, or None where that would round."""
    if not b.any():
        return b
    ratio = scale / other if other else 0.0
    if abs(math.frexp(ratio)[0]) != 0.5 or ratio * other != scale:
        return None
    with np.errstate(over="ignore", under="ignore"):
        folded = (b * np.float64(ratio)).astype(np.float32)
    return folded if np.array_equal(folded / np.float64(ratio), b) else None


def most_frequent(values: Iterable[float]) -> float:
    """Returns the most frequent value; 0 only where all are, as nothing can be folded over 0."""
    found = list(values)
    return Counter(filter(None, found) if any(found) else found).most_common(1)[0][0]


def find_alpha(scale: float, divisor: float) -> float:
    """Returns the alpha that divided gives `scale`, to the last bit where there is one."""
    near = scale * divisor
    candidates = (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
    return next((alpha for alpha in candidates if alpha / divisor == scale), near)
