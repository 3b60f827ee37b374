"""What a mean of factors misses of the devices' true changes, and FedEx-LoRA's way to keep it.

With A' = A + eta * sum_i w_i dA_i and B' likewise, what the devices really changed differs from B'A' - BA by

    R = eta * sum_i w_i [(B_i + dB_i)(A_i + dA_i) - B_i A_i]  -  (B'A' - BA)
      = eta * sum_i w_i [(B_i + dB_i - B') dA_i + dB_i (A_i - A)]

where B_i A_i is what device i began from. The second line is the same with all that cancels taken out: with
updates on the present version, A_i = A, its rank is K r, and it is never dense. For weights that add up to 1
and whole adapters it is sum_i p_i B_i A_i - B'A', as in FedEx-LoRA (arXiv 2410.09432) and LoRA-FAIR
(arXiv 2411.14961).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from converters.adapter import Factors, LoraAdapter
from converters.lowrank import adapter_norm, reproject, weighted_sum
from coordinator.strategies.merges.contract import Loaded, Merge, Terms, Total, load_all
from coordinator.strategies.merges.factors import FactorStep, add_increments


class Residual(Merge, frozen=True, tag="residual"):
    """Adds factors up, and adds the residual to what the state carries, at rank `remainder_rank`."""

    def prepare(self, terms: Terms) -> "ResidualStep":
        """See `Merge`."""
        pairs = load_all(terms.items)
        mean = add_increments(terms.state, pairs, terms.weights, terms.tries)
        return ResidualStep(mean, pairs, terms.weights, terms.remainder_rank)


class ResidualStep(NamedTuple):
    """A mean of factors, and the updates that it misses something of."""

    mean: FactorStep
    pairs: Sequence[Loaded]
    weights: Sequence[float]
    remainder_rank: int

    def at(self, share: float) -> Total:
        """See `Merged`."""
        total, state = self.mean.at(share), self.mean.state
        rests = dict(state.remainder.modules) if state.remainder else {}
        lost_square = 0.0
        weights = [share * weight for weight in self.weights]
        for name, residual in residuals(state.adapter, total.adapter, self.pairs, weights):
            parts = [residual, *([rests[name]] if name in rests else [])]
            whole = weighted_sum([(1.0, part) for part in parts], residual.scale)
            projection = reproject(whole, self.remainder_rank, residual.scale, max_rest=0)
            rests[name] = projection.kept
            lost_square += projection.lost**2
        remainder = LoraAdapter(rests)
        return total._replace(
            remainder=remainder if len(remainder) else None,
            remainder_norm=adapter_norm(remainder),
            dropped_norm=lost_square**0.5,
        )


def residuals(
    old: LoraAdapter, merged: LoraAdapter, pairs: Sequence[Loaded], weights: Sequence[float]
) -> Iterator[tuple[str, Factors]]:
    """Finds R of every module that somebody trained, as a stack of factors.

    Args:
        old: The present adapter, (B, A).
        merged: The mean of factors, (B', A').
        pairs: Updates of the rank of `old`.
        weights: Of the updates, eta included.
    """
    for name, mean in merged:
        a, b = [], []
        for (base, delta), weight in zip(pairs, weights, strict=True):
            if name not in delta.modules:
                continue
            start, step = base.modules[name], delta.modules[name]
            a.append(step.a)
            b.append(np.float32(weight) * (start.b + step.b - mean.b))
            moved = start.a - old.modules[name].a
            if moved.any():
                a.append(moved)
                b.append(np.float32(weight) * step.b)
        if a:
            yield name, Factors(np.concatenate(a), np.concatenate(b, axis=1), mean.scale)
