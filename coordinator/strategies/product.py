"""Space `product`: what is added up is what each device really changed, dW = s * ((B + dB)(A + dA) - B A).

    W <- the best approximation, of the fleet's rank, of  W + remainder + eta * sum_i w_i dW_i

Each dW is a factored pair of rank 2r, the sum is a stack of them, and the re-projection never forms a dense
matrix (`converters.lowrank`; FlexLoRA, arXiv 2402.11505, truncates the dense product instead). Ours: what
the truncation leaves over is carried to the next version, up to a rank that is configured (what lies behind
that is lost, and reported); the new factors are rotated toward the previous ones, so that coordinates, and
with them what devices keep of their encoding's rounding, persist approximately. Memory grows with the
buffer: the optimum needs all of it at once, one update being a few MB.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from converters.adapter import Factors, LoraAdapter
from converters.lowrank import (
    Projection,
    adapter_norm,
    change,
    norm,
    reproject,
    revive,
    rotate,
    rotate_adapter,
    truncate_adapter,
    weighted_sum,
)
from coordinator.strategies.base import Contribution, State, Sum


class Move(NamedTuple):
    """What one update does to one module."""

    weight: float
    base: Factors  # as dispatched
    delta: Factors  # increments of both factors


def add_products(
    state: State,
    buffer: Sequence[Contribution],
    weights: Sequence[float],
    server_lr: float,
    remainder_rank: int,
) -> Sum:
    """The state plus `server_lr` times the weighted sum of the buffer's true changes."""
    pairs = [(one.load_base(), one.load_delta()) for one in buffer]
    carried = state.remainder.modules if state.remainder else {}
    merged: dict[str, Projection] = {}
    squares = np.zeros(len(buffer))
    step_square = 0.0
    for name, old in state.adapter:
        moves = [
            Move(weight, base.modules[name], delta.modules[name]) if name in delta.modules else None
            for weight, (base, delta) in zip(weights, pairs, strict=True)
        ]
        squares += [norm(change(move.base, move.delta)) ** 2 if move else 0.0 for move in moves]
        parts = [carried[name]] if name in carried else []
        if steps := _stacked([move for move in moves if move]):
            parts.append(weighted_sum([(server_lr, step) for step in steps], old.scale))
            step_square += norm(parts[-1]) ** 2
        merged[name] = _merge(old, parts, remainder_rank)
    rest = LoraAdapter({name: one.rest for name, one in merged.items() if one.rest.rank})
    return Sum(
        adapter=LoraAdapter({name: one.kept for name, one in merged.items()}),
        remainder=rest if len(rest) else None,
        norms=tuple(np.sqrt(squares).tolist()),
        step_norm=step_square**0.5,
        remainder_norm=adapter_norm(rest),
        dropped_norm=sum(one.lost**2 for one in merged.values()) ** 0.5,
    )


def truncate_product(adapter: LoraAdapter, rank: int, previous: LoraAdapter) -> LoraAdapter:
    """The leading `rank` directions of `adapter`, in coordinates near to those of `previous`."""
    return rotate_adapter(truncate_adapter(adapter, rank), previous)


def _stacked(moves: Sequence[Move]) -> list[Factors]:
    """The weighted sum of true changes: one stack for all moves from the same base.

    With one base, sum_i w_i ((B + dB_i) dA_i + dB_i A) has rank K r + r instead of 2 K r, and what a merge
    costs grows with the square of the rank.
    """
    groups: dict[int, list[Move]] = {}
    for move in moves:
        groups.setdefault(id(move.base.a), []).append(move)
    return [_stack(group) for group in groups.values()]


def _stack(group: Sequence[Move]) -> Factors:
    base = group[0].base
    a = [move.delta.a for move in group]
    b = [np.float32(move.weight) * (base.b + move.delta.b) for move in group]
    shared = sum((np.float32(move.weight) * move.delta.b for move in group), np.zeros_like(base.b))
    return Factors(np.concatenate([*a, base.a]), np.concatenate([*b, shared], axis=1), base.scale)


def _merge(old: Factors, parts: Sequence[Factors], remainder_rank: int) -> Projection:
    if not parts:  # nobody trained this module: it stays to the last bit
        return Projection(old, Factors(old.a[:0], old.b[:, :0], old.scale), 0.0)
    total = weighted_sum([(1.0, old), *((1.0, part) for part in parts)], old.scale)
    projection = reproject(total, old.rank, old.scale, max_rest=remainder_rank)
    return projection._replace(kept=revive(rotate(projection.kept, old), old))
