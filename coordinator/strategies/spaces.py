"""What devices train on: the master, or the part of it that fits a rank tier, by the strategy's space."""

import numpy as np

from converters.adapter import Factors, LoraAdapter
from converters.masking import leading_rows
from coordinator.strategies.base import State
from coordinator.strategies.product import truncate_product
from coordinator.strategies.stages import Stages


def dispatch(
    stages: Stages, state: State, rank: int, previous: LoraAdapter | None, remainder_rank: int
) -> LoraAdapter:
    """What devices of `rank` train on: the adapter itself, or a part of it.

    Args:
        stages: Their space decides which part. Where they merge by `residual`, devices must compute with the
            remainder too: it follows behind the adapter's own rows, which are the first `rank` and the only
            ones to train (`Recipe.train_rank`).
        state: The version's.
        rank: Of the tier.
        previous: What the tier trained on before; None at version 0.
        remainder_rank: Rows that the remainder takes.
    """
    adapter = state.adapter
    if stages.merge == "residual":
        return with_remainder(adapter, state.remainder, remainder_rank)
    if rank >= adapter.max_rank:
        return adapter
    first = leading_rows(adapter, rank)
    return first if stages.space == "factors" else truncate_product(adapter, rank, previous or first)


def train_rank(stages: Stages, rank: int) -> int:
    """How many leading rows devices of `rank` train; 0 is all that they are given."""
    return rank if stages.merge == "residual" else 0


def with_remainder(adapter: LoraAdapter, remainder: LoraAdapter | None, rows: int) -> LoraAdapter:
    """Adapter and remainder as one adapter, whose product is the sum of both.

    Args:
        adapter: Comes first.
        remainder: Of rank `rows` or less; modules that it has not are zero in it.
        rows: That the remainder takes: they are filled up with zeros, so that shapes are the same in every
            version.
    """
    carried = remainder.modules if remainder else {}
    joined = {}
    for name, own in adapter:
        a, b = np.zeros((rows, own.a.shape[1]), np.float32), np.zeros((own.b.shape[0], rows), np.float32)
        if name in carried:
            rest = carried[name]
            a[: rest.rank], b[:, : rest.rank] = rest.a, rest.b * np.float32(rest.scale / own.scale)
        joined[name] = Factors(np.concatenate([own.a, a]), np.concatenate([own.b, b], axis=1), own.scale)
    return LoraAdapter(joined)
