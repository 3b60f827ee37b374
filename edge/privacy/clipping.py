"""Bounds how much one unit can change, and hides what it changed behind noise.

An adapter counts as one vector of all entries of A and B, as in `converters.arithmetic`; norms are taken in
float64, since the bound is what the guarantee stands on.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from converters.adapter import Array, LoraAdapter
from converters.arithmetic import map_entries
from edge.privacy.noise import Draw, add_noise


def exact_norm(x: LoraAdapter) -> float:
    """Returns the Frobenius norm of all entries together, summed in float64."""
    return math.sqrt(math.fsum(_square(entry) for _, f in x for entry in (f.a, f.b)))


def clip(x: LoraAdapter, bound: float) -> LoraAdapter:
    """Shrinks `x` to the norm `bound` where it is longer."""
    norm = exact_norm(x)
    return x if norm <= bound else map_entries(lambda entry: _scaled(entry, bound / norm), x)


def clipped_sum(gradients: Iterable[LoraAdapter], bound: float) -> LoraAdapter:
    """Adds up gradients, each shrunk to the norm `bound` where it is longer; there is at least one.

    Abadi et al., arXiv 1607.00133, Algorithm 1, before its noise.
    """
    total: LoraAdapter | None = None
    for gradient in gradients:
        clipped = clip(gradient, bound)
        total = clipped if total is None else map_entries(np.add, total, clipped)
    if total is None:
        raise ValueError("no gradients to add up, expected at least one")
    return total


def noised(x: LoraAdapter, deviation: float, draw: Draw, mask: LoraAdapter | None = None) -> LoraAdapter:
    """Adds noise of a standard deviation to every entry of `x`.

    Args:
        x: What is hidden.
        deviation: Of the noise; 0 adds none.
        draw: Gives random bytes.
        mask: 0 where an entry is never told anybody and stays as it is; None adds noise everywhere.
    """

    def hide(entries: Array, *told: Array) -> Array:
        hidden: Array = add_noise(entries.astype(np.float64), deviation, draw).astype(np.float32)
        return np.where(told[0] > 0, hidden, entries) if told else hidden

    return map_entries(hide, x, *(() if mask is None else (mask,)))


def _square(entries: NDArray[np.float32]) -> float:
    wide = entries.astype(np.float64).ravel()
    return float(wide @ wide)


def _scaled(entries: Array, by: float) -> Array:
    """Multiplies in float64 and rounds towards zero, so that rounding never adds to the norm."""
    wide = entries.astype(np.float64) * by
    narrow = wide.astype(np.float32)
    too_long = np.abs(narrow.astype(np.float64)) > np.abs(wide)
    narrow[too_long] = np.nextafter(narrow[too_long], np.float32(0))
    return narrow
