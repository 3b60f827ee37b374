"""Space `product`: what is added up is what each device really changed, dW = s * ((B + dB)(A + dA) - B A).

    W <- the best approximation, of the fleet's rank, of  W + g * remainder + eta * sum_i w_i dW_i

All factors of a module are stacked once, each dW is a few weights between them, and neither the norms nor
the re-projection form a dense matrix (`converters.lowrank`; FlexLoRA, arXiv 2402.11505, truncates one). With
one base for K updates of rank r the stack has rank (K + 1) r and not 2 K r, and what a merge costs grows with
its square.

Ours: what the truncation leaves over is carried to the next version, up to a rank that is configured (what
lies behind that is lost, and reported). Devices train on W alone and do not see the remainder: what W misses
they send again every time, so that at g = 1 it winds up like an integral without feedback. In `python -m
benchmarks.studies.remainder` it grows to 1.8 steps with unlike, stale devices and to 14 in a fleet of short
steps, and W ends 6 and 27 % further from the mean target than with g = 0, where nothing is carried. With g =
0.8 or 0.9 it stays near one step, and W ends 3 % nearer in the first and 3 % further in the second.

Ours, too: the new factors are rotated toward the previous ones, so that coordinates, and with them what
devices keep of their encoding's rounding, persist approximately. Memory grows with the buffer: the optimum
needs all of it at once, one update being a few MB.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from converters.adapter import Factors, LoraAdapter
from converters.lowrank import (
    Stack,
    project,
    revive,
    rotate,
    rotate_adapter,
    stack,
    truncate_adapter,
)
from converters.parallel import share
from coordinator.strategies.base import Change, State, Sum

SMALL = 1 << 20  # parameters; other threads would cost an adapter below more than they save


class Move(NamedTuple):
    """What one update does to one module."""

    number: int  # of the update in the buffer
    weight: float  # the server's learning rate included
    base: Factors  # as dispatched
    delta: Factors  # increments of both factors


class Merged(NamedTuple):
    """One module after a merge."""

    kept: Factors
    rest: Factors | None  # what is carried to the next version
    rest_norm: float
    lost: float
    norms: list[float]  # of each update's true change, in order of the buffer
    step_norm: float


def add_products(
    state: State,
    buffer: Sequence[Change],
    weights: Sequence[float],
    server_lr: float,
    remainder_rank: int,
    remainder_decay: float = 1.0,
) -> Sum:
    """The state plus `server_lr` times the weighted sum of the buffer's true changes.

    Args:
        state: Its remainder is added, too.
        buffer: All of it is loaded.
        weights: Of each update.
        server_lr: eta.
        remainder_rank: Of what is carried to the next version.
        remainder_decay: g, 0 to 1, by which the state's remainder is multiplied before it is added.
    """
    pairs = [(one.load_base().modules, one.load_delta().modules) for one in buffer]
    carried = {
        name: rest._replace(scale=remainder_decay * rest.scale) for name, rest in state.remainder or ()
    }

    def merge(name: str) -> Merged:
        moves = [
            Move(number, server_lr * weight, base[name], delta[name])
            for number, (weight, (base, delta)) in enumerate(zip(weights, pairs, strict=True))
            if name in delta
        ]
        return _merge(state.adapter.modules[name], carried.get(name), moves, len(buffer), remainder_rank)

    names = list(state.adapter.modules)
    is_small = state.adapter.num_parameters < SMALL
    merged = dict(zip(names, share(merge, names, is_small=is_small), strict=True))
    rest = {name: one.rest for name, one in merged.items() if one.rest}
    norms = np.linalg.norm([one.norms for one in merged.values()], axis=0)
    return Sum(
        adapter=LoraAdapter({name: one.kept for name, one in merged.items()}),
        remainder=LoraAdapter(rest) if rest else None,
        norms=tuple(norms.tolist()),
        step_norm=math.hypot(*(one.step_norm for one in merged.values())),
        remainder_norm=math.hypot(*(one.rest_norm for one in merged.values())),
        dropped_norm=math.hypot(*(one.lost for one in merged.values())),
    )


def truncate_product(adapter: LoraAdapter, rank: int, previous: LoraAdapter) -> LoraAdapter:
    """The leading `rank` directions of `adapter`, in coordinates near to those of `previous`."""
    return rotate_adapter(truncate_adapter(adapter, rank), previous)


def _merge(
    old: Factors, carried: Factors | None, moves: Sequence[Move], num_updates: int, remainder_rank: int
) -> Merged:
    """One module's part in `add_products`."""
    norms = [0.0] * num_updates
    if not moves and carried is None:  # nobody trained this module: it stays to the last bit
        return Merged(old, None, 0.0, 0.0, norms, 0.0)
    moved = {_key(part): part for move in moves for part in (move.delta, move.base)}
    parts = moved | {_key(part): part for part in (old, carried) if part}
    ends = itertools.accumulate(part.rank for part in parts.values())
    places = {key: slice(end - part.rank, end) for (key, part), end in zip(parts.items(), ends, strict=True)}
    stacked = stack(list(parts.values()))
    core = np.zeros_like(stacked.gram_a)
    for move in moves:
        delta, base, scale = places[_key(move.delta)], places[_key(move.base)], move.base.scale
        norms[move.number] = abs(scale) * _change_norm(stacked, delta, base)
        unit = move.weight * scale * np.eye(move.delta.rank)
        for column, row in ((base, delta), (delta, base), (delta, delta)):
            core[column, row] += unit
    step_norm = stacked.norm(core, sum(part.rank for part in moved.values()))
    for part in (old, carried):
        if part:
            core[places[_key(part)], places[_key(part)]] += part.scale * np.eye(part.rank)
    projection = project(stacked, core, old.rank, old.scale, max_rest=remainder_rank)
    kept = revive(rotate(projection.kept, old), old)
    rest = projection.rest if projection.rest.rank else None
    return Merged(kept, rest, projection.rest_norm, projection.lost, norms, step_norm)


def _change_norm(stacked: Stack, delta: slice, base: slice) -> float:
    """The norm of p da + db a with p = b + db: b a, which cancels, is not in it."""
    over_a, over_b = stacked.gram_a, stacked.gram_b
    p_db = over_b[base, delta] + over_b[delta, delta]
    p_p = over_b[base, base] + over_b[delta, base] + p_db
    square = float(np.vdot(p_p, over_a[delta, delta]))
    square += 2 * float(np.vdot(p_db, over_a[delta, base]))
    square += float(np.vdot(over_b[delta, delta], over_a[base, base]))
    return math.sqrt(max(square, 0.0))


def _key(part: Factors) -> tuple[int, int]:
    """Factors that are the same arrays have one place in the stack, however many updates begin from them."""
    return id(part.a), id(part.b)
