"""Inner products of all updates of a buffer with each other, from factors; distances follow from them."""

import itertools
from collections.abc import Sequence

import numpy as np

from converters.adapter import Factors, LoraAdapter
from converters.lowrank import Matrix, stack
from coordinator.strategies.pipeline_state import Item
from edge.choices import Space


def gram_matrix(items: Sequence[Item], like: LoraAdapter, space: Space) -> Matrix:
    """Multiplies every two updates, from factors: (K, K).

    Args:
        items: K updates.
        like: Has all modules. In space `factors` what a device of lower rank lacks counts as zeros, as it
            does where it is merged.
        space: What is compared: increments, or true changes.
    """
    pairs = [(item.load_base(), item.load_delta()) for item in items]
    total = np.zeros((len(items), len(items)))
    for name, shape in like:
        owners = [number for number, (_, delta) in enumerate(pairs) if name in delta.modules]
        if owners:
            deltas = [pairs[owner][1].modules[name] for owner in owners]
            if space == "factors":
                gram = _entry_products(deltas, shape)
            else:
                bases = [pairs[owner][0].modules[name] for owner in owners]
                gram = _true_products(bases, deltas)
            total[np.ix_(owners, owners)] += gram
    return total


def _entry_products(deltas: list[Factors], like: Factors) -> Matrix:
    rows = np.zeros((len(deltas), like.a.size + like.b.size))
    for row, delta in zip(rows, deltas, strict=True):
        row[: delta.a.size] = delta.a.ravel()
        row[like.a.size : like.a.size + delta.b.size] = delta.b.T.ravel()
    gram: Matrix = rows @ rows.T
    return gram


def _true_products(bases: list[Factors], deltas: list[Factors]) -> Matrix:
    """Multiplies all pairs from one stack, in which each base has one place."""
    parts = {_key(part): part for part in (*bases, *deltas)}
    ends = itertools.accumulate(part.rank for part in parts.values())
    stacked = stack(list(parts.values()))
    pick = np.eye(len(stacked.gram_a))
    rows = {key: pick[:, end - part.rank : end] for (key, part), end in zip(parts.items(), ends, strict=True)}
    pairs = [(rows[_key(base)], rows[_key(delta)]) for base, delta in zip(bases, deltas, strict=True)]
    # A true change is [b + db, db] @ [da; a].
    left = np.concatenate([part for base, delta in pairs for part in (base + delta, delta)], axis=1)
    right = np.concatenate([part for base, delta in pairs for part in (delta, base)], axis=1)
    blocks = (left.T @ stacked.gram_b @ left) * (right.T @ stacked.gram_a @ right)
    owner = np.repeat(np.diag([base.scale for base in bases]), [2 * base.rank for base in bases], axis=1)
    gram: Matrix = owner @ blocks @ owner.T
    return gram


def _key(part: Factors) -> tuple[int, int]:
    return id(part.a), id(part.b)
