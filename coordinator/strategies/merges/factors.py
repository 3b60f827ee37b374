"""Space `factors`: increments of A and of B are added up, each in its own coordinates.

    A <- A + eta * sum_i w_i dA_i        B <- B + eta * sum_i w_i dB_i

Coordinates persist from version to version, as AlignFed needs them (arXiv 2606.08197, Eq. 8) and as FedIT
averages (arXiv 2305.05644). The sum of factors is not the factors' product: cross terms dB_i dA_j, i != j,
come in unasked. A device of lower rank holds the first rows of A and columns of B; its increments are padded
with zeros (HetLoRA, arXiv 2401.06432). Updates are loaded one at a time into a running sum. A merge is bound
by reading memory: all that is done with a module's increments is done while they are in the cache. A second
thread gains nothing (its operations are too short), and loading four updates at a time only a sixth.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from converters.adapter import Array, Factors, LoraAdapter
from converters.arithmetic import square
from coordinator.strategies.contract import State
from coordinator.strategies.merges.contract import Change, Merge, Terms, Total


class Sum(Merge, frozen=True, tag="sum"):
    """Adds the weighted increments of A and of B up."""

    def prepare(self, terms: Terms) -> "FactorStep":
        """See `Merge`."""
        return add_increments(terms.state, terms.items, terms.weights, terms.tries)


class FactorStep(NamedTuple):
    """A step of factors, in the shapes of the adapter that it is added to."""

    state: State
    step: Mapping[str, Factors]
    norms: tuple[float, ...]
    step_norm: float
    tries: int = 1  # how often `at` may be called; if only once, for the whole step, which it uses up

    def at(self, share: float) -> Total:
        """See `Merged`."""
        add = partial(self._add, share)
        adapter = LoraAdapter(
            {
                name: Factors(add(self.step[name].a, old.a), add(self.step[name].b, old.b), old.scale)
                for name, old in self.state.adapter
            }
        )
        return Total(adapter, self.state.remainder, self.norms, share * self.step_norm)

    def _add(self, share: float, step: Array, old: Array) -> Array:
        """Adds a share of the step to what was there, and all of it in place."""
        if self.tries > 1:
            step = np.float32(share) * step
        step += old
        return step


def add_increments(
    state: State, items: Sequence[Change], weights: Sequence[float], tries: int = 1
) -> FactorStep:
    """Adds the weighted increments up, one update in memory at a time."""
    step = {
        name: Factors(np.zeros(old.a.shape, np.float32), np.zeros(old.b.shape, np.float32), old.scale)
        for name, old in state.adapter
    }
    scratch = np.empty(max(entry.size for f in step.values() for entry in (f.a, f.b)), np.float32)
    norms = []
    for item, weight in zip(items, weights, strict=True):
        rate, total = np.float32(weight), 0.0
        for name, delta in item.load_delta():
            total += _accumulate(step[name].a[: delta.rank], delta.a, rate, scratch)
            total += _accumulate(step[name].b[:, : delta.rank], delta.b, rate, scratch)
        norms.append(math.sqrt(total))
    step_norm = math.sqrt(sum(square(entry) for f in step.values() for entry in (f.a, f.b)))
    return FactorStep(state, step, tuple(norms), step_norm, tries)


def _accumulate(total: Array, x: Array, weight: np.float32, scratch: Array) -> float:
    """Adds `weight * x` to `total` and returns the square of the norm of `x`."""
    product = scratch[: x.size].reshape(x.shape)
    np.multiply(x, weight, out=product)
    total += product
    return square(x)
