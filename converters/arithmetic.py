"""Arithmetic on the entries of adapters: every sum, difference, multiple, inner product and norm of them.

An adapter counts here as one vector of all its entries, A and B alike, in float32; what the products `b @ a`
of adapters add up to is the business of `converters.lowrank`. Results have the modules, shapes and scales of
the first operand (of `like`, in `combine`). Modules that the second lacks, and rows of A and columns of B
behind its rank, count as zeros there: devices of lower rank train the leading ones (HetLoRA, arXiv
2401.06432). What the second alone has is left out.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.adapter import Array, Factors, LoraAdapter


def map_entries(operation: Callable[..., Array], first: LoraAdapter, *others: LoraAdapter) -> LoraAdapter:
    """Applies a function of arrays to every A and to every B.

    Args:
        operation: Takes as many arrays of one shape as there are adapters; keeps the shape.
        first: Gives modules and scales.
        others: Have the modules of `first` in the same shapes.
    """
    made = {}
    for name, f in first:
        rest = [other.modules[name] for other in others]
        a, b = operation(f.a, *(one.a for one in rest)), operation(f.b, *(one.b for one in rest))
        made[name] = Factors(a, b, f.scale)
    return LoraAdapter(made)


def zeros_like(x: LoraAdapter) -> LoraAdapter:
    """Returns zeros in the modules, shapes and scales of `x`."""
    return map_entries(np.zeros_like, x)


def select(x: LoraAdapter, names: Collection[str]) -> LoraAdapter:
    """Returns the modules of `x` that are among `names`."""
    return LoraAdapter({name: factors for name, factors in x if name in names})


def add(x: LoraAdapter, y: LoraAdapter) -> LoraAdapter:
    """Adds `y` to `x`."""
    return _onto(np.add, x, y)


def subtract(x: LoraAdapter, y: LoraAdapter) -> LoraAdapter:
    """Subtracts `y` from `x`."""
    return _onto(np.subtract, x, y)


def multiply(x: LoraAdapter, by: float) -> LoraAdapter:
    """Multiplies every entry of `x`, and not its scales, by one number."""
    factor = np.float32(by)
    return map_entries(lambda entries: factor * entries, x)


def combine(terms: Iterable[tuple[float, LoraAdapter]], like: LoraAdapter) -> LoraAdapter:
    """Adds up weight times adapter; a running sum, so that one term at a time is in memory.

    Args:
        terms: Have no module that `like` lacks, and no higher rank.
        like: Gives modules, shapes and scales.
    """
    total = {name: (np.zeros_like(f.a), np.zeros_like(f.b)) for name, f in like}
    for weight, term in terms:
        for name, factors in term:
            a, b = total[name]
            a[: factors.rank] += np.float32(weight) * factors.a
            b[:, : factors.rank] += np.float32(weight) * factors.b
    return LoraAdapter({name: Factors(*total[name], f.scale) for name, f in like})


def dot(x: LoraAdapter, y: LoraAdapter) -> float:
    """Returns the inner product of the entries of `x` and `y`."""
    total = 0.0
    for name, one in x:
        if other := y.modules.get(name):
            rank = min(one.rank, other.rank)
            total += float(np.vdot(one.a[:rank], other.a[:rank]))
            total += float(np.vdot(one.b[:, :rank], other.b[:, :rank]))
    return total


def norm(x: LoraAdapter) -> float:
    """Returns the Frobenius norm of all entries of `x`."""
    return float(np.sqrt(dot(x, x)))


def square(entries: NDArray[Any]) -> float:
    """Returns the squared Frobenius norm of one array."""
    return float(np.vdot(entries, entries))


def _onto(operation: np.ufunc, x: LoraAdapter, y: LoraAdapter) -> LoraAdapter:
    """Applies `operation` to the entries of `x` that `y` has as well; the others stay."""
    made = dict(x)
    for name, (old_a, old_b, scale) in x:
        if other := y.modules.get(name):
            rank = min(len(old_a), other.rank)
            a, b = old_a.copy(), old_b.copy()
            operation(a[:rank], other.a[:rank], out=a[:rank])
            operation(b[:, :rank], other.b[:, :rank], out=b[:, :rank])
            made[name] = Factors(a, b, scale)
    return LoraAdapter(made)
