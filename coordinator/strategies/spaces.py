"""The two spaces in which deltas are added up, by name; what each means stands in the file of its name."""

from collections.abc import Sequence

from converters.adapter import LoraAdapter
from coordinator.strategies.base import Contribution, State, Sum
from coordinator.strategies.factors import add_increments, truncate_factors
from coordinator.strategies.product import add_products, truncate_product
from edge.protocol.messages import Space


def add_up(
    space: Space,
    state: State,
    buffer: Sequence[Contribution],
    weights: Sequence[float],
    server_lr: float,
    remainder_rank: int,
) -> Sum:
    """The state plus `server_lr` times the weighted sum of the buffer."""
    if space == "product":
        return add_products(state, buffer, weights, server_lr, remainder_rank)
    return add_increments(state, buffer, weights, server_lr)


def dispatch(space: Space, adapter: LoraAdapter, rank: int, previous: LoraAdapter | None) -> LoraAdapter:
    """What devices of `rank` train on: the adapter itself, or a part of it.

    Args:
        space: Decides which part.
        adapter: The master.
        rank: Of the tier.
        previous: What the tier trained on before; None at version 0, whose product is zero.
    """
    if rank >= adapter.max_rank:
        return adapter
    if space == "factors" or previous is None:
        return truncate_factors(adapter, rank)
    return truncate_product(adapter, rank, previous)
