"""Where a format keeps the two factors of a module: what PEFT's and mlx-lm's files have in common.

Reading is by headers first, so that every fault of a file is known before the first value is read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from converters.adapter import Array, Factors, LoraAdapter
from converters.bases.contract import Modules
from converters.bases.targets import check_fit, fit_faults
from converters.errors import AdapterError, UnsupportedAdapter
from converters.faults import Fault
from converters.files.safetensors import FLOATING, TensorFile, open_tensors
from converters.formats.about import coverage

_MAGNITUDE = "lora_magnitude_vector"


class Layout(NamedTuple):
    """A format's names for the factors of `<module>`: prefix, module, suffix."""

    prefix: str
    a: str
    b: str
    is_transposed: bool  # a (in, rank) and b (rank, out), instead of a (rank, in) and b (out, rank)

    def tensors(self, module: str) -> tuple[str, str]:
        """Names the two factors of a module."""
        return f"{self.prefix}{module}{self.a}", f"{self.prefix}{module}{self.b}"

    def owner(self, tensor: str) -> str | None:
        """Names the module that a factor belongs to; None for what is no factor."""
        for suffix in (self.a, self.b):
            if tensor.startswith(self.prefix) and tensor.endswith(suffix):
                return tensor[len(self.prefix) : -len(suffix)] or None
        return None


class Shape(NamedTuple):
    """The shape of one module's pair of factors."""

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
        """Raises one error for all that was found; does nothing where nothing was.

        Raises:
            UnsupportedAdapter: If something cannot be carried over; names what is malformed, too.
            AdapterError: If the adapter is only malformed.
        """
        faults = self.unsupported + self.malformed
        if self.unsupported:
            raise UnsupportedAdapter.of(self.where, faults)
        if self.malformed:
            raise AdapterError.of(self.where, faults)


def read_adapter(
    path: Path,
    layout: Layout,
    faults: Faults,
    modules: Modules | None,
    rank_of: Callable[[str], int],
    scale_of: Callable[[str, int], float],
) -> LoraAdapter:
    """Reads all factors, once every header is found sound.

    Args:
        path: A safetensors file.
        layout: Where it keeps the factors.
        faults: What was found before; what is found here is raised with it.
        modules: The base model's, to check names and shapes against.
        rank_of: What the config says of a module.
        scale_of: What a module of a rank is multiplied by.

    Raises:
        UnsupportedAdapter: It is more than LoRA on linear layers of this base; everything is named at once.
        AdapterError: It is missing, damaged, or its factors do not agree with its config.
    """
    file = open_tensors(path, AdapterError)
    shapes = _find_shapes(file, layout, faults)
    for name, shape in shapes.items():
        if shape.rank != rank_of(name):
            text = f"{name} has rank {shape.rank}, its config says {rank_of(name)}"
            faults.malformed.append(Fault(text, "modules have another rank than the config says"))
    if modules is not None:
        inside = {name: (shape.num_in, shape.num_out) for name, shape in shapes.items()}
        faults.unsupported.extend(fit_faults(inside, modules))
    faults.raise_any()
    found = {}
    for name, shape in shapes.items():
        a, b = (file.array(tensor) for tensor in layout.tensors(name))
        found[name] = Factors(*((a.T, b.T) if layout.is_transposed else (a, b)), scale_of(name, shape.rank))
    return LoraAdapter(found)


def read_coverage(path: Path, layout: Layout) -> str:
    """Hashes the names of the modules whose factors lie in `path`.

    Raises:
        AdapterError: It is missing or damaged.
    """
    owners = {layout.owner(tensor): None for tensor in open_tensors(path, AdapterError).tensors}
    return coverage({name: None for name in owners if name})


def check_writable(adapter: LoraAdapter, path: Path, form: str, modules: Modules | None) -> None:
    """Checks that there is something to write, and that it is for the base model.

    Raises:
        AdapterError: The adapter has no modules: no tool has a name for that.
        UnsupportedAdapter: Naming the modules that the base model lacks or has otherwise.
    """
    if not len(adapter):
        raise AdapterError(f"{path}: an adapter without modules cannot be written in {form}")
    if modules is not None:
        check_fit(adapter, modules)


def to_tensors(adapter: LoraAdapter, layout: Layout) -> dict[str, Array]:
    """Names all factors as the format does."""
    tensors = {}
    for module, factors in adapter:
        for name, values in zip(layout.tensors(module), (factors.a, factors.b), strict=True):
            tensors[name] = np.ascontiguousarray(values.T) if layout.is_transposed else values
    return tensors


def _find_shapes(file: TensorFile, layout: Layout, faults: Faults) -> dict[str, Shape]:
    """Finds the shapes of all sound pairs in `file`; the rest goes into `faults`."""
    owners = {tensor: layout.owner(tensor) for tensor in file.tensors}
    faults.unsupported.extend(_stranger(tensor) for tensor, owner in owners.items() if owner is None)
    names = sorted({owner for owner in owners.values() if owner is not None})
    if not names:
        faults.malformed.append("holds no LoRA factors")
    shapes = {}
    for name in names:
        tensors = layout.tensors(name)
        found = list(_pair_faults(file, tensors, layout))
        faults.malformed.extend(found)
        if not found:
            a, b = (file.tensors[tensor].shape[:: -1 if layout.is_transposed else 1] for tensor in tensors)
            shapes[name] = Shape(a[1], a[0], b[0])
    return shapes


def _stranger(tensor: str) -> Fault:
    """Tells of a tensor that is no factor of a linear layer."""
    owner, found, _ = tensor.partition(f".{_MAGNITUDE}")
    if not found:
        kind = "tensors are no LoRA factors of a linear layer"
        return Fault(f"{tensor} is no LoRA factor of a linear layer", kind, tensor)
    what, name = f"{_MAGNITUDE} (DoRA) is not supported", owner.removeprefix("base_model.model.")
    return Fault(f"{name}: {what}", f"modules: {what}", name)


def _pair_faults(file: TensorFile, tensors: tuple[str, str], layout: Layout) -> Iterator[Fault]:
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
