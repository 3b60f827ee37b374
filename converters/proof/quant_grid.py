"""What a quantised weight can have come from: the values that its block can hold, and the one that it holds.

A block of a quantised tensor stores small codes and one step (and offset) for all of them: it can hold the
values low, low + step, …, low + (levels - 1) · step. Every quantiser of llama.cpp and MLX ends by giving each
weight the code that comes nearest to it, whatever it did before to find a good step. So the original of a
value is known to within half a step; another model's weight has the right code by chance only.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from converters.adapter import Array

SLACK = 0.03  # steps, beside what rounding takes; the worst seen of a copy is 0.02 beside it
MAX_BEYOND = 0.1  # of a run's largest value, where a block's step was too small to be stored


class QuantGrid(NamedTuple):
    """A run of one row's values and what their block could hold instead, all arrays of shape (count,)."""

    kind: str  # the type's name, for messages
    values: Array  # what the weights are taken for
    low: Array  # the least that the block can hold
    step: Array  # negative where codes count downwards, 0 where the block holds one value only
    levels: int  # 1: full precision, low and step have no meaning
    rounding: float  # relative, of values in full precision; else of low and step before they were stored


def full_precision(kind: str, values: Array) -> QuantGrid:
    """Wraps values in full precision: F32, F16 or BF16."""
    # A float32 may have gone through a sum, as Gemma's norms do (their weight is stored plus one).
    rounding = {"F16": 2.0**-11, "BF16": 2.0**-8}.get(kind, 2.0**-22)
    return QuantGrid(kind, values, values, values, 1, rounding)


@np.errstate(invalid="ignore", over="ignore")  # of damaged blocks and values
def find_wrong(original: Array, held: QuantGrid) -> NDArray[np.bool_]:
    """Marks which values of `held` cannot have come from `original`, by rounding to the nearest.

    Values beyond the ends of a block's range are cut off there by some quantisers; that is the nearest, too.
    """
    x, values = original.astype(np.float64), held.values.astype(np.float64)
    error = np.abs(x - values)
    if held.levels == 1:
        return np.asarray(~(error <= held.rounding * (1 + np.abs(x))))
    step, is_flat = held.step.astype(np.float64), held.step == 0
    code = np.clip(np.rint((x - held.low) / np.where(is_flat, 1.0, step)), 0, held.levels - 1)
    nearest = np.abs(held.low + code * step - x)
    slack = SLACK + 2 * held.levels * held.rounding
    allowed = np.where(is_flat, MAX_BEYOND * np.abs(x).max(initial=0.0), nearest + slack * np.abs(step))
    return np.asarray(~(error <= allowed))  # also where something is not a number
