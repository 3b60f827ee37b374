"""Where a format keeps the two factors of a module: what PEFT's and mlx-lm's files have in common.

Reading is by headers first, so that every fault of a file is known before the first value is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from converters.adapter import Array, Factors, LoraAdapter
from converters.errors import AdapterError, UnsupportedAdapter
from converters.faults import Fault
from converters.files.safetensors import FLOATING, TensorFile

_MAGNITUDE = "lora_magnitude_vector"


class Layout(NamedTuple):
    """A format's names for the factors of `<module>`: prefix, module, suffix."""

    prefix: str
    a: str
    b: str
    is_transposed: bool  # a (in, rank) and b (rank, out), instead of a (rank, in) and b (out, rank)


class Shape(NamedTuple):
    """Of one module's pair of factors."""

    num_in: int
    rank: int
    num_out: int


@dataclass
class Faults:
    """Everything that is wrong with one adapter, raised at once.

    Attributes:
        where: What the message begins with.
        malformed: What no tool would take.
        unsupported: What is sound, but cannot be carried over.
    """

    where: str
    malformed: list[Fault | str] = field(default_factory=list)
    unsupported: list[Fault | str] = field(default_factory=list)

    def raise_any(self) -> None:
        """Does nothing where nothing was found.

        Raises:
            UnsupportedAdapter: If something cannot be carried over; names what is malformed, too.
            AdapterError: If the adapter is only malformed.
        """
        faults = self.unsupported + self.malformed
        if self.unsupported:
            raise UnsupportedAdapter.of(self.where, faults)
        if self.malformed:
            raise AdapterError.of(self.where, faults)


def find_shapes(file: TensorFile, layout: Layout, faults: Faults) -> dict[str, Shape]:
    """The shapes of all sound pairs in `file`; the rest goes into `faults`."""
    owners = {tensor: _owner(tensor, layout) for tensor in file.tensors}
    faults.unsupported.extend(_stranger(tensor) for tensor, owner in owners.items() if owner is None)
    names = sorted({owner for owner in owners.values() if owner is not None})
    if not names:
        faults.malformed.append("holds no LoRA factors")
    shapes = {}
    for name in names:
        tensors = [f"{layout.prefix}{name}{suffix}" for suffix in (layout.a, layout.b)]
        found = list(_pair_faults(file, tensors, layout))
        faults.malformed.extend(found)
        if not found:
            a, b = (file.tensors[tensor].shape[:: -1 if layout.is_transposed else 1] for tensor in tensors)
            shapes[name] = Shape(a[1], a[0], b[0])
    return shapes


def read_factors(file: TensorFile, layout: Layout, name: str, scale: float) -> Factors:
    """The factors of one module that `find_shapes` found sound."""
    a, b = (file.array(f"{layout.prefix}{name}{suffix}") for suffix in (layout.a, layout.b))
    return Factors(a.T, b.T, scale) if layout.is_transposed else Factors(a, b, scale)


def to_tensors(adapter: LoraAdapter, layout: Layout) -> dict[str, Array]:
    """All factors under the format's names."""
    tensors = {}
    for name, factors in adapter:
        for suffix, values in ((layout.a, factors.a), (layout.b, factors.b)):
            turned = np.ascontiguousarray(values.T) if layout.is_transposed else values
            tensors[f"{layout.prefix}{name}{suffix}"] = turned
    return tensors


def rank_fault(name: str, rank: int, expected: int) -> Fault:
    """A module of another rank than its config says."""
    text = f"{name} has rank {rank}, its config says {expected}"
    return Fault(text, "modules have another rank than the config says")


def _stranger(tensor: str) -> Fault:
    """A tensor that is no factor of a linear layer."""
    owner, found, _ = tensor.partition(f".{_MAGNITUDE}")
    if not found:
        kind = "tensors are no LoRA factors of a linear layer"
        return Fault(f"{tensor} is no LoRA factor of a linear layer", kind, tensor)
    what, name = f"{_MAGNITUDE} (DoRA) is not supported", owner.removeprefix("base_model.model.")
    return Fault(f"{name}: {what}", f"modules: {what}", name)


def _owner(tensor: str, layout: Layout) -> str | None:
    for suffix in (layout.a, layout.b):
        if tensor.startswith(layout.prefix) and tensor.endswith(suffix):
            return tensor[len(layout.prefix) : -len(suffix)] or None
    return None


def _pair_faults(file: TensorFile, tensors: list[str], layout: Layout) -> Iterator[Fault]:
    missing = [tensor for tensor in tensors if tensor not in file.tensors]
    if missing:
        yield Fault(f"{missing[0]} is missing", "factors are missing", missing[0])
        return
    a, b = (file.tensors[tensor] for tensor in tensors)
    for name, tensor in zip(tensors, (a, b), strict=True):
        if tensor.dtype not in FLOATING:
            text = f"{name} is of type {tensor.dtype}, expected floating point"
            yield Fault(text, "factors are not of floating point")
    if len(a.shape) != 2 or len(b.shape) != 2:
        text = f"{tensors[0]} {a.shape} and {tensors[1]} {b.shape} must be matrices"
        yield Fault(text, "pairs of factors are not matrices")
        return
    ranks = (a.shape[1], b.shape[0]) if layout.is_transposed else (a.shape[0], b.shape[1])
    if ranks[0] != ranks[1] or ranks[0] == 0:
        text = f"{tensors[0]} {a.shape} and {tensors[1]} {b.shape} must share one rank"
        yield Fault(text, "pairs of factors do not share one rank")
