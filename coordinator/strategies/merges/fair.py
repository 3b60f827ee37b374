"""LoRA-FAIR's way to keep what a mean of factors misses: the mean of B is corrected for it.

    dB = argmin |R - dB A'|^2 + mu |dB|^2 = R A'^T (A'A'^T + mu I)^-1        B'' = B' + dB

R is the residual of `residual.py`, in factors: nothing is dense but (rank, rank). The paper (arXiv
2411.14961) asks for a dB that brings (B' + dB) A' near to sum_i p_i B_i A_i under a penalty on dB; the
squared distance, this closed form and a mu that grows with A' are ours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from converters.adapter import Array, Factors, LoraAdapter
from converters.arithmetic import norm, subtract
from coordinator.strategies.merges.contract import Loaded, Merge, Terms, Total, load_all
from coordinator.strategies.merges.factors import FactorStep, add_increments
from coordinator.strategies.merges.residual import residuals
from coordinator.strategies.record import Positive


class Fair(Merge, frozen=True, tag="fair"):
    """Adds factors up, with B corrected; the adapter has the updates' rank."""

    ridge: Positive = 1e-2  # mu, in mean squares of the rows of A'

    def prepare(self, terms: Terms) -> "FairStep":
        """See `Merge`."""
        pairs = load_all(terms.items)
        mean = add_increments(terms.state, pairs, terms.weights, terms.tries)
        return FairStep(mean, pairs, terms.weights, self.ridge)


class FairStep(NamedTuple):
    """A mean of factors, and the updates that its B is corrected by."""

    mean: FactorStep
    pairs: Sequence[Loaded]
    weights: Sequence[float]
    ridge: float

    def at(self, share: float) -> Total:
        """See `Merged`."""
        total, old = self.mean.at(share), self.mean.state.adapter
        corrected = dict(total.adapter.modules)
        weights = [share * weight for weight in self.weights]
        for name, residual in residuals(old, total.adapter, self.pairs, weights):
            mean = corrected[name]
            corrected[name] = mean._replace(b=mean.b + correct(residual, mean.a, self.ridge))
        adapter = LoraAdapter(corrected)
        return total._replace(adapter=adapter, step_norm=norm(subtract(adapter, old)))


def correct(residual: Factors, a: Array, ridge: float) -> Array:
    """Finds what to add to B, (out, rank), so that its product with `a` takes most of `residual` in.

    Args:
        residual: At the scale of the adapter.
        a: A', (rank, in).
        ridge: As in `Fair`.
    """
    rows = a.astype(np.float64)
    gram = rows @ rows.T
    mu = ridge * np.trace(gram) / len(gram)
    if mu == 0.0:  # A' is zero: no B can help
        return np.zeros((residual.b.shape[0], len(gram)), np.float32)
    onto = (residual.a @ rows.T) @ np.linalg.inv(gram + mu * np.eye(len(gram)))
    return np.asarray(residual.b @ onto, np.float32)
