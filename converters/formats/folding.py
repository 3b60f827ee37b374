"""One rank and one scale for modules that have several, without any rounding.

A smaller rank is filled up with zeros, and a scale that differs by a power of two goes into `b`. Formats that
know one rank or one scale for the whole adapter write that, and note beside it what each module had.
"""

import math

import msgspec
import numpy as np

from converters.adapter import Array, Factors


class Own(msgspec.Struct, frozen=True):
    """What was filled up and folded: module to its true rank, and to its true scale."""

    ranks: dict[str, int] = {}
    scales: dict[str, float] = {}


def fill(factors: Factors, rank: int) -> Factors:
    """The same update with `rank` rows of `a`, at least as many as there are."""
    more = rank - factors.rank
    a, b = np.pad(factors.a, ((0, more), (0, 0))), np.pad(factors.b, ((0, 0), (0, more)))
    return Factors(a, b, factors.scale)


def unfill(factors: Factors, rank: int) -> Factors:
    """The first `rank` rows of `a`, if the others are zeros still; otherwise all."""
    a, b, scale = factors
    is_filled = 0 < rank < factors.rank and not a[rank:].any() and not b[:, rank:].any()
    return Factors(a[:rank], b[:, :rank], scale) if is_filled else factors


def fold(b: Array, scale: float, other: float) -> Array | None:
    """`b * scale / other`, or None where that would round."""
    if not b.any():
        return b
    ratio = scale / other if other else 0.0
    if abs(math.frexp(ratio)[0]) != 0.5 or ratio * other != scale:
        return None
    with np.errstate(over="ignore", under="ignore"):
        folded = (b * np.float64(ratio)).astype(np.float32)
    return folded if np.array_equal(folded / np.float64(ratio), b) else None
