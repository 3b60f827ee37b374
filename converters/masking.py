"""Which factors a recipe lets a device change, as an adapter of 0 and 1.

FFA-LoRA (arXiv 2403.12313) trains b alone; FedEx-LoRA's carried residual (arXiv 2410.09432) lies in rows of a
and columns of b that nobody trains.
"""

import numpy as np

from converters.adapter import Factors, LoraAdapter
from converters.arithmetic import map_entries
from converters.choices import Trains


def train_mask(adapter: LoraAdapter, trains: Trains, train_rank: int) -> LoraAdapter | None:
    """Marks with 1 which entries of `adapter` are trained; None where all are.

    Args:
        adapter: Gives modules and shapes.
        trains: Which factors.
        train_rank: Rows of a, and columns of b, that are trained, from the first on; 0 is all.
    """
    if trains == "both" and not 0 < train_rank < adapter.max_rank:
        return None
    rows = train_rank or adapter.max_rank
    masks = {}
    for name, factors in adapter:
        a, b = np.zeros_like(factors.a), np.zeros_like(factors.b)
        a[:rows], b[:, :rows] = trains != "b", trains != "a"
        masks[name] = Factors(a, b, factors.scale)
    return LoraAdapter(masks)


def leading_rows(adapter: LoraAdapter, train_rank: int) -> LoraAdapter:
    """Takes the first `train_rank` rows of every a and columns of every b; 0 is all.

    What a device sends where the rest is frozen, and what one of lower rank trains on (HetLoRA, arXiv
    2401.06432).
    """
    if train_rank == 0:
        return adapter
    return LoraAdapter({name: Factors(f.a[:train_rank], f.b[:, :train_rank], f.scale) for name, f in adapter})


def apply_mask(adapter: LoraAdapter, mask: LoraAdapter | None) -> LoraAdapter:
    """Puts zeros where `mask`, which has its modules and shapes, is 0."""
    return adapter if mask is None else map_entries(np.multiply, adapter, mask)
