"""Robust merges in space `factors`: the middle of the increments, coordinate by coordinate.

    A <- A + eta * sum_i w_i * middle of dA_i       B likewise       (Yin et al., arXiv 1803.01498)

median        of all that take part
trimmed-mean  mean of what is left without the largest and the smallest, of each a share of `trim`

The paper's: both middles. Ours: updates take part alike, whatever their weights, but the step is as long as
`sum` would make it, which is the sum of the weights; a row that devices of lower rank have not is the middle
of those who have it, times their weights. Beside the updates one module's stack is in memory at a time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from converters.adapter import Array, Factors
from converters.arithmetic import square
from coordinator.strategies.contract import State
from coordinator.strategies.merges.contract import Change, Merge, Terms
from coordinator.strategies.merges.factors import FactorStep

Middle = Callable[[NDArray[np.float32]], Array]  # (K, rows, columns) to (rows, columns)


class Median(Merge, frozen=True, tag="median"):
    """Takes the median of all that take part."""

    def prepare(self, terms: Terms) -> FactorStep:
        """See `Merge`."""
        return add_middles(terms.state, terms.items, terms.weights, median, terms.tries)


class TrimmedMean(Merge, frozen=True, tag="trimmed-mean"):
    """Takes the mean of what is left without the largest and the smallest of each coordinate."""

    trim: Annotated[float, Meta(ge=0.0, lt=0.5)] = 0.2  # share of the updates cut off at either end

    def prepare(self, terms: Terms) -> FactorStep:
        """See `Merge`."""
        middle = partial(trimmed_mean, trim=self.trim)
        return add_middles(terms.state, terms.items, terms.weights, middle, terms.tries)


def median(stack: NDArray[np.float32]) -> Array:
    """Takes the median over the first axis; of an even number, the mean of the two in the middle."""
    return _between(stack, (len(stack) - 1) // 2)


def trimmed_mean(stack: NDArray[np.float32], trim: float) -> Array:
    """Takes the mean over the first axis without the floor(trim K) largest and smallest entries."""
    return _between(stack, int(trim * len(stack) + 1e-9))


def add_middles(
    state: State, items: Sequence[Change], weights: Sequence[float], middle: Middle, tries: int = 1
) -> FactorStep:
    """Makes the step that is the sum of the weights times the middle of the increments."""
    deltas = [item.load_delta() for item in items]
    squares = np.zeros(len(deltas))
    step, step_square = {}, 0.0
    for name, old in state.adapter:
        owners = [number for number, delta in enumerate(deltas) if name in delta.modules]
        parts = [deltas[owner].modules[name] for owner in owners]
        squares[owners] += [square(part.a) + square(part.b) for part in parts]
        due = [weights[owner] for owner in owners]
        step_a = _middle_rows([part.a for part in parts], due, old.a, middle)
        step_b = _middle_rows([part.b.T for part in parts], due, old.b.T, middle).T
        step[name] = Factors(step_a, step_b, old.scale)
        step_square += square(step_a) + square(step_b)
    return FactorStep(state, step, tuple(np.sqrt(squares).tolist()), step_square**0.5, tries)


def _middle_rows(parts: Sequence[Array], weights: Sequence[float], like: Array, middle: Middle) -> Array:
    """Makes the step in the shape of `like`; parts may have fewer rows, and rows that none has are zero."""
    step = np.zeros_like(like)
    start = 0
    for end in sorted({len(part) for part in parts}):
        stack = np.stack([part[start:end] for part in parts if len(part) >= end])
        length = sum(weight for weight, part in zip(weights, parts, strict=True) if len(part) >= end)
        step[start:end] = np.float32(length) * middle(stack)
        start = end
    return step


def _between(stack: NDArray[np.float32], cut: int) -> Array:
    kept = np.sort(stack, axis=0)[cut : len(stack) - cut]
    middle: Array = kept.mean(axis=0)  # np.median takes twice as long
    return middle
