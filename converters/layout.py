"""Where a format keeps the two factors of a module: what PEFT's and mlx-lm's files have in common.

Reading is by headers first, so that every fault of a file is known before the first value is read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from converters.adapter import Array, Factors, LoraAdapter
from converters.base import Modules
from converters.errors import AdapterError, UnsupportedAdapter
from converters.tensorfile import FLOATING, TensorFile


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
    malformed: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)

    def raise_any(self) -> None:
        """Does nothing where nothing was found.

        Raises:
            UnsupportedAdapter: If something cannot be carried over; names what is malformed, too.
            AdapterError: If the adapter is only malformed.
        """
        message = f"{self.where}: " + "; ".join(self.unsupported + self.malformed)
        if self.unsupported:
            raise UnsupportedAdapter(message)
        if self.malformed:
            raise AdapterError(message)


def find_shapes(file: TensorFile, layout: Layout, faults: Faults) -> dict[str, Shape]:
    """The shapes of all sound pairs in `file`; the rest goes into `faults`."""
    owners = {tensor: _owner(tensor, layout) for tensor in file.tensors}
    strangers = [tensor for tensor, owner in owners.items() if owner is None]
    if strangers:
        faults.unsupported.append(f"no LoRA factors of a linear layer: {', '.join(strangers)}")
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


def fit_faults(shapes: Mapping[str, tuple[int, int]], modules: Modules) -> Iterator[str]:
    """Of modules with (in, out) features, those that the base model's `modules` lack or have otherwise."""
    for name, shape in shapes.items():
        if name not in modules:
            yield f"the base model has no linear layer {name}"
        elif tuple(modules[name]) != tuple(shape):
            yield f"{name} is for {shape} features (in, out), the base model has {tuple(modules[name])}"


def check_fit(adapter: LoraAdapter, modules: Modules) -> None:
    """Checks that every module of `adapter` is one of the base model's.

    Raises:
        UnsupportedAdapter: Naming all modules that the base lacks, or whose shapes differ, at once.
    """
    shapes = {name: (factors.a.shape[1], factors.b.shape[0]) for name, factors in adapter}
    Faults("adapter", unsupported=list(fit_faults(shapes, modules))).raise_any()


def _owner(tensor: str, layout: Layout) -> str | None:
    for suffix in (layout.a, layout.b):
        if tensor.startswith(layout.prefix) and tensor.endswith(suffix):
            return tensor[len(layout.prefix) : -len(suffix)] or None
    return None


def _pair_faults(file: TensorFile, tensors: list[str], layout: Layout) -> Iterator[str]:
    missing = [tensor for tensor in tensors if tensor not in file.tensors]
    if missing:
        yield f"{missing[0]} is missing"
        return
    a, b = (file.tensors[tensor] for tensor in tensors)
    for name, tensor in zip(tensors, (a, b), strict=True):
        if tensor.dtype not in FLOATING:
            yield f"{name} is of type {tensor.dtype}, expected floating point"
    if len(a.shape) != 2 or len(b.shape) != 2:
        yield f"{tensors[0]} {a.shape} and {tensors[1]} {b.shape} must be matrices"
        return
    ranks = (a.shape[1], b.shape[0]) if layout.is_transposed else (a.shape[0], b.shape[1])
    if ranks[0] != ranks[1] or ranks[0] == 0:
        yield f"{tensors[0]} {a.shape} and {tensors[1]} {b.shape} must share one rank"
