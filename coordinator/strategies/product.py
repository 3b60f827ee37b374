"""Space `product`: what is added up is what each device really changed, dW = s * ((B + dB)(A + dA) - B A).

    W <- the best approximation, of the fleet's rank, of  W + remainder + eta * sum_i w_i dW_i

Each dW is a factored pair of rank 2r, the sum is a stack of them, and the re-projection never forms a dense
matrix (`converters.lowrank`; FlexLoRA, arXiv 2402.11505, truncates the dense product instead). Ours: what
the truncation leaves over is carried to the next version, up to a rank that is configured (what lies behind
that is lost, and reported); the new factors are rotated toward the previous ones, so that coordinates, and
with them what devices keep of their encoding's rounding, persist approximately. Memory grows with the
buffer: the optimum needs all of it at once, one update being a few MB.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from converters.adapter import Factors, LoraAdapter
from converters.lowrank import (
    Projection,
    adapter_change,
    adapter_norm,
    norm,
    reproject,
    revive,
    rotate,
    rotate_adapter,
    truncate_adapter,
    weighted_sum,
)
from coordinator.strategies.base import Contribution, State, Sum


def add_products(
    state: State,
    buffer: Sequence[Contribution],
    weights: Sequence[float],
    server_lr: float,
    remainder_rank: int,
) -> Sum:
    """The state plus `server_lr` times the weighted sum of the buffer's true changes."""
    changes = [adapter_change(one.load_base(), one.load_delta()) for one in buffer]
    steps = {name: _step(name, old, changes, weights, server_lr) for name, old in state.adapter}
    carried = state.remainder.modules if state.remainder else {}
    merged = {
        name: _merge(old, [part for part in (carried.get(name), steps[name]) if part], remainder_rank)
        for name, old in state.adapter
    }
    rest = LoraAdapter({name: one.rest for name, one in merged.items() if one.rest.rank})
    return Sum(
        adapter=LoraAdapter({name: one.kept for name, one in merged.items()}),
        remainder=rest if len(rest) else None,
        norms=tuple(adapter_norm(change) for change in changes),
        step_norm=_root_sum(norm(step) for step in steps.values() if step),
        remainder_norm=adapter_norm(rest),
        dropped_norm=_root_sum(one.lost for one in merged.values()),
    )


def truncate_product(adapter: LoraAdapter, rank: int, previous: LoraAdapter) -> LoraAdapter:
    """The leading `rank` directions of `adapter`, in coordinates near to those of `previous`."""
    return rotate_adapter(truncate_adapter(adapter, rank), previous)


def _step(
    name: str, old: Factors, changes: Sequence[LoraAdapter], weights: Sequence[float], server_lr: float
) -> Factors | None:
    terms = [
        (server_lr * weight, change.modules[name])
        for weight, change in zip(weights, changes, strict=True)
        if name in change.modules
    ]
    return weighted_sum(terms, old.scale) if terms else None


def _merge(old: Factors, parts: Sequence[Factors], remainder_rank: int) -> Projection:
    if not parts:  # nobody trained this module: it stays to the last bit
        return Projection(old, Factors(old.a[:0], old.b[:, :0], old.scale), 0.0)
    total = weighted_sum([(1.0, old), *((1.0, part) for part in parts)], old.scale)
    projection = reproject(total, old.rank, old.scale, max_rest=remainder_rank)
    return projection._replace(kept=revive(rotate(projection.kept, old), old))


def _root_sum(norms: Iterable[float]) -> float:
    return float(np.sqrt(sum(value**2 for value in norms)))
