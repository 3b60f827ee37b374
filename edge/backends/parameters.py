"""All factors of an adapter in one vector: a, then b of each module, in sorted order of names and in C order.

So clipping, AdamW, masks and snapshots are a few operations, whatever the number of modules.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from converters.adapter import Array, Factors, LoraAdapter
from converters.faults import Fault
from edge.errors import BackendError


class Shape(NamedTuple):
    """What one module's factors look like."""

    a: tuple[int, ...]  # (rank, in)
    b: tuple[int, ...]  # (out, rank)
    scale: float


Form = dict[str, Shape]  # by module, in sorted order
Matrices = dict[str, tuple[Array, Array]]  # by module: a and b


def form_of(adapter: LoraAdapter) -> Form:
    """Returns what `adapter` looks like, its numbers left out."""
    return {name: Shape(factors.a.shape, factors.b.shape, factors.scale) for name, factors in adapter}


def to_vector(adapter: LoraAdapter) -> Array:
    """Joins all factors end to end: (parameters,)."""
    matrices = [matrix.ravel() for _, factors in adapter for matrix in (factors.a, factors.b)]
    return np.concatenate([np.zeros(0, np.float32), *matrices])


def split_vector(vector: Array, form: Form) -> Matrices:
    """Returns a and b of each module as views of `vector`."""
    found, begin = {}, 0
    for name, shape in form.items():
        middle = begin + math.prod(shape.a)
        end = middle + math.prod(shape.b)
        found[name] = vector[begin:middle].reshape(shape.a), vector[middle:end].reshape(shape.b)
        begin = end
    return found


def from_vector(vector: Array, form: Form) -> LoraAdapter:
    """Returns the adapter of `form` whose factors are copied from `vector`.

    Raises:
        AdapterError: Naming every module that has entries which are not finite.
    """
    return LoraAdapter(
        {
            name: Factors(a.copy(), b.copy(), form[name].scale)
            for name, (a, b) in split_vector(vector, form).items()
        }
    )


def check_mask(mask: LoraAdapter, form: Form) -> None:
    """Compares a mask with the adapter that it is for.

    Raises:
        BackendError: Naming all modules that one of the two lacks, whose shapes differ, or whose entries are
            neither 0 nor 1.
    """
    gone = form.keys() - mask.modules.keys()
    faults = [Fault(f"{name} is missing", "modules are missing", name) for name in gone]
    for name, factors in mask:
        came, expected = (factors.a.shape, factors.b.shape), form.get(name)
        if expected is None:
            text = f"{name}: the adapter has no such module"
            faults.append(Fault(text, "modules that the adapter does not have", name))
        elif came != expected[:2]:
            text = f"{name}: has a and b of {came}, expected {expected[:2]}"
            faults.append(Fault(text, "modules of other shapes"))
        elif not all(np.isin(matrix, (0, 1)).all() for matrix in factors[:2]):
            text = f"{name}: has entries other than 0 and 1"
            faults.append(Fault(text, "modules with entries other than 0 and 1", name))
    if faults:
        raise BackendError.of("mask does not fit the adapter", sorted(faults))


def mask_vector(mask: LoraAdapter | None, form: Form) -> NDArray[np.bool_] | None:
    """Returns where an entry is trained: (parameters,), or None where all are.

    Raises:
        BackendError: As `check_mask`.
    """
    if mask is None:
        return None
    check_mask(mask, form)
    return to_vector(mask) > 0
