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

A Gram matrix of a stack costs more than the stack and does not depend on the step's length. Where the guard
may try several, it is kept (half a MB a module, for 16 updates of rank 8), and the factors are stacked anew
for each: that is a quarter of the stacking, and to keep them in float64 would take twice the updates' memory.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from msgspec import Meta

from converters.adapter import Factors, LoraAdapter
from converters.lowrank import (
    Matrix,
    Stack,
    project,
    revive,
    rotate,
    rotate_adapter,
    stack,
    truncate_adapter,
)
from converters.parallel import share as share_out
from coordinator.strategies.contract import State
from coordinator.strategies.merges.contract import Change, Loaded, Merge, Terms, Total, load_all
from edge.choices import Space

NUM_SMALL = 1 << 20  # parameters; other threads would cost an adapter below more than they save


class Product(Merge, frozen=True, tag="product"):
    """Adds true changes up, and re-projects the sum to the fleet's rank."""

    carries: bool = True  # what the re-projection leaves over, to the next version
    decay: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.8  # g; at 1 nothing of it is lost, and it may wind up
    space: ClassVar[Space] = "product"

    def prepare(self, terms: Terms) -> "ProductStep":
        """See `Merge`."""
        rows = terms.remainder_rank if self.carries else 0
        state, items, weights, _, tries = terms
        return add_products(state, items, weights, rows, self.decay, keeps_grams=tries > 1)


class Move(NamedTuple):
    """What one update does to one module."""

    number: int  # of the update in the buffer
    weight: float  # the server's learning rate included
    base: Factors  # as dispatched
    delta: Factors  # increments of both factors


class Grams(NamedTuple):
    """What a module's step is, whatever its length, in coordinates of its stack."""

    gram_a: Matrix
    gram_b: Matrix
    core: Matrix  # of the whole step
    norms: list[float]  # of each update's true change, in order of the buffer
    step_norm: float


class MergedModule(NamedTuple):
    """One module after a merge."""

    kept: Factors
    rest: Factors | None  # what is carried to the next version
    rest_norm: float
    lost: float
    norms: list[float]
    step_norm: float


class ProductStep:
    """A sum of true changes, not yet added.

    Args:
        state: What it is added to; its remainder, multiplied by the decay, is added, too.
        pairs: The updates.
        weights: Of each.
        remainder_rank: Of what is carried to the next version.
        decay: Of the state's remainder.
        keeps_grams: Whether `at` is called more than once.
        num_small: Parameters; an adapter with fewer is merged in one thread.
    """

    def __init__(
        self,
        state: State,
        pairs: Sequence[Loaded],
        weights: Sequence[float],
        remainder_rank: int,
        decay: float,
        *,
        keeps_grams: bool,
        num_small: int,
    ) -> None:
        self._adapter, self._pairs, self._weights = state.adapter, pairs, weights
        self._carried = {
            name: rest._replace(scale=decay * rest.scale) for name, rest in state.remainder or ()
        }
        self._remainder_rank, self._keeps_grams = remainder_rank, keeps_grams
        self._is_small = state.adapter.num_parameters < num_small
        self._grams: dict[str, Grams] = {}

    def at(self, share: float) -> Total:
        """See `Merged`."""
        names = list(self._adapter.modules)
        found = share_out(lambda name: self._merge(name, share), names, is_small=self._is_small)
        merged = dict(zip(names, found, strict=True))
        rest = {name: one.rest for name, one in merged.items() if one.rest}
        norms = np.linalg.norm([one.norms for one in merged.values()], axis=0)
        return Total(
            adapter=LoraAdapter({name: one.kept for name, one in merged.items()}),
            remainder=LoraAdapter(rest) if rest else None,
            norms=tuple(norms.tolist()),
            step_norm=math.hypot(*(one.step_norm for one in merged.values())),
            remainder_norm=math.hypot(*(one.rest_norm for one in merged.values())),
            dropped_norm=math.hypot(*(one.lost for one in merged.values())),
        )

    def _merge(self, name: str, share: float) -> MergedModule:
        """Adds `share` of the step to one module."""
        old, carried = self._adapter.modules[name], self._carried.get(name)
        moves = [
            Move(number, weight, base.modules[name], delta.modules[name])
            for number, (weight, (base, delta)) in enumerate(zip(self._weights, self._pairs, strict=True))
            if name in delta.modules
        ]
        if not moves and carried is None:  # nobody trained this module: it stays to the last bit
            return MergedModule(old, None, 0.0, 0.0, [0.0] * len(self._pairs), 0.0)
        moved = {_key(part): part for move in moves for part in (move.delta, move.base)}
        parts = moved | {_key(part): part for part in (old, carried) if part}
        places = _places(parts)
        known = self._grams.get(name)
        if known is None:
            stacked = stack(list(parts.values()))
            num_moved = sum(part.rank for part in moved.values())
            known = _grams(stacked, moves, places, num_moved, len(self._pairs))
            if self._keeps_grams:
                self._grams[name] = known
        else:
            stacked = stack(list(parts.values()), (known.gram_a, known.gram_b))
        core = share * known.core
        for part in (old, carried):
            if part:
                core[places[_key(part)], places[_key(part)]] += part.scale * np.eye(part.rank)
        projection = project(stacked, core, old.rank, old.scale, max_rest=self._remainder_rank)
        kept = revive(rotate(projection.kept, old), old)
        rest = projection.rest if projection.rest.rank else None
        step_norm = share * known.step_norm
        return MergedModule(kept, rest, projection.rest_norm, projection.lost, known.norms, step_norm)


def add_products(
    state: State,
    items: Sequence[Change],
    weights: Sequence[float],
    remainder_rank: int,
    decay: float = 1.0,
    *,
    keeps_grams: bool = False,
    num_small: int = NUM_SMALL,
) -> ProductStep:
    """Adds the weighted true changes up, all of them in memory.

    Args:
        state: See `ProductStep`.
        items: The updates.
        weights: Of each.
        remainder_rank: See `ProductStep`.
        decay: g, 0 to 1, by which the state's remainder is multiplied before it is added.
        keeps_grams: See `ProductStep`.
        num_small: See `ProductStep`.
    """
    pairs = load_all(items)
    return ProductStep(
        state, pairs, weights, remainder_rank, decay, keeps_grams=keeps_grams, num_small=num_small
    )


def truncate_product(adapter: LoraAdapter, rank: int, previous: LoraAdapter) -> LoraAdapter:
    """Takes the leading `rank` directions of `adapter`, in coordinates near to those of `previous`."""
    return rotate_adapter(truncate_adapter(adapter, rank), previous)


def _grams(
    stacked: Stack,
    moves: Sequence[Move],
    places: Mapping[tuple[int, int], slice],
    num_moved: int,
    num_updates: int,
) -> Grams:
    """Finds what the updates do to one module."""
    norms = [0.0] * num_updates
    core = np.zeros_like(stacked.gram_a)
    for move in moves:
        delta, base, scale = places[_key(move.delta)], places[_key(move.base)], move.base.scale
        norms[move.number] = abs(scale) * _change_norm(stacked, delta, base)
        unit = move.weight * scale * np.eye(move.delta.rank)
        for column, row in ((base, delta), (delta, base), (delta, delta)):
            core[column, row] += unit
    return Grams(stacked.gram_a, stacked.gram_b, core, norms, stacked.norm(core, num_moved))


def _change_norm(stacked: Stack, delta: slice, base: slice) -> float:
    """Measures p da + db a with p = b + db: b a, which cancels, is not in it."""
    over_a, over_b = stacked.gram_a, stacked.gram_b
    p_db = over_b[base, delta] + over_b[delta, delta]
    p_p = over_b[base, base] + over_b[delta, base] + p_db
    square = float(np.vdot(p_p, over_a[delta, delta]))
    square += 2 * float(np.vdot(p_db, over_a[delta, base]))
    square += float(np.vdot(over_b[delta, delta], over_a[base, base]))
    return math.sqrt(max(square, 0.0))


def _key(part: Factors) -> tuple[int, int]:
    """Returns what factors of the same arrays share: one place in the stack, however many begin from them."""
    return id(part.a), id(part.b)


def _places(parts: Mapping[tuple[int, int], Factors]) -> dict[tuple[int, int], slice]:
    """Finds the rows of each part in the stack."""
    ends = itertools.accumulate(part.rank for part in parts.values())
    return {key: slice(end - part.rank, end) for (key, part), end in zip(parts.items(), ends, strict=True)}
