"""What of an update is merged: the factors that are shared, and the rows that were trained.

A device that follows its recipe sends no more than that. One that sends more is not believed: a frozen A
must stay the same for all (FFA-LoRA), a B of its own is nobody else's (FedSA-LoRA), and the rows that carry
FedEx-LoRA's residual are the coordinator's.
"""

from functools import partial

import numpy as np

from converters.adapter import Factors, LoraAdapter
from converters.masking import leading_rows
from coordinator.strategies.method import Method, Shared
from coordinator.strategies.pipeline_state import Item


def keep_shared(items: tuple[Item, ...], method: Method, rank: int) -> tuple[Item, ...]:
    """Takes all that is not shared out of the deltas of items.

    Args:
        items: As they came.
        method: Says what is shared.
        rank: Of the master, whose rows alone are trained where a residual follows behind them.
    """
    if method.carries_residual:
        items = tuple(_leading(item, rank) for item in items)
    if method.shared == "both":
        return items
    return tuple(item.changed(partial(_without_private, item, method.shared)) for item in items)


def _leading(item: Item, rank: int) -> Item:
    cut = item.changed(lambda: leading_rows(item.load_delta(), rank))
    return cut._replace(load_base=lambda: leading_rows(item.load_base(), rank))


def _without_private(item: Item, shared: Shared) -> LoraAdapter:
    return LoraAdapter(
        {
            name: Factors(
                np.zeros_like(f.a) if shared == "b" else f.a,
                np.zeros_like(f.b) if shared == "a" else f.b,
                f.scale,
            )
            for name, f in item.load_delta()
        }
    )
