"""What devices train on: the master, or the part of it that fits a rank tier, by the method."""

import numpy as np

from converters.adapter import Factors, LoraAdapter
from converters.masking import leading_rows
from coordinator.strategies.contract import State
from coordinator.strategies.merges.product import truncate_product
from coordinator.strategies.method import Method


def dispatch(
    method: Method, state: State, rank: int, previous: LoraAdapter | None, remainder_rank: int
) -> LoraAdapter:
    """Makes what devices of `rank` train on: the adapter itself, or a part of it.

    Args:
        method: Its space decides which part. Where it merges by `residual`, devices must compute with the
            remainder too: it follows behind the adapter's own rows, which are the first `rank` and the only
            ones to train (`Recipe.train_rank`).
        state: The version's.
        rank: Of the tier.
        previous: What the tier trained on before; None at version 0.
        remainder_rank: Rows that the remainder takes.
    """
    adapter = state.adapter
    if method.carries_residual:
        return with_remainder(adapter, state.remainder, remainder_rank)
    if rank >= adapter.max_rank:
        return adapter
    first = leading_rows(adapter, rank)
    return first if method.space == "factors" else truncate_product(adapter, rank, previous or first)


def train_rank(method: Method, rank: int) -> int:
    """Returns how many leading rows devices of `rank` train; 0 is all that they are given."""
    return rank if method.carries_residual else 0


def with_remainder(adapter: LoraAdapter, remainder: LoraAdapter | None, rows: int) -> LoraAdapter:
    """Joins adapter and remainder to one adapter, whose product is the sum of both.

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
