"""The canonical adapter: LoRA factors by target module, in Hugging Face names.

Every format is read into this form and written from it, and every algebra works on it. A module that is
not there was not trained. Invariants, checked when built: float32, C-contiguous, matching ranks, finite.

Source: Hu et al., LoRA (arXiv 2106.09685): W' = W + scale * B @ A.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from converters.errors import AdapterError
from converters.faults import Fault

Array = NDArray[np.float32]


class Factors(NamedTuple):
    """One target module's update, `scale * b @ a`, in float32."""

    a: Array  # (rank, in_features)
    b: Array  # (out_features, rank)
    scale: float  # the number that is really multiplied, alpha / rank in PEFT

    @property
    def rank(self) -> int:
        """The number of rows of `a`, which is the number of columns of `b`."""
        return int(self.a.shape[0])


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """An adapter: target module (`model.layers.3.self_attn.q_proj`) to its factors.

    Attributes:
        modules: Read-only, in sorted order of names.

    Raises:
        AdapterError: On building, naming every module that is malformed at once.
    """

    modules: Mapping[str, Factors]

    def __post_init__(self) -> None:
        ordered = {name: _stored(self.modules[name]) for name in sorted(self.modules)}
        faults = [fault for name, factors in ordered.items() for fault in _faults(name, factors)]
        if faults:
            raise AdapterError.of("adapter is malformed", faults)
        object.__setattr__(self, "modules", MappingProxyType(ordered))

    def __iter__(self) -> Iterator[tuple[str, Factors]]:
        """Yields names and factors in sorted order of names."""
        return iter(self.modules.items())

    def __len__(self) -> int:
        return len(self.modules)

    def __eq__(self, other: object) -> bool:
        """Compares bit for bit: modules, scales and factors."""
        if not isinstance(other, LoraAdapter):
            return NotImplemented
        return self.modules.keys() == other.modules.keys() and all(
            mine.scale == other.modules[name].scale
            and np.array_equal(mine.a, other.modules[name].a)
            and np.array_equal(mine.b, other.modules[name].b)
            for name, mine in self
        )

    @property
    def num_parameters(self) -> int:
        """Entries of all factors together."""
        return sum(factors.a.size + factors.b.size for _, factors in self)

    @property
    def max_rank(self) -> int:
        """The largest rank of any module; 0 for an adapter without modules."""
        return max((factors.rank for _, factors in self), default=0)


def check_rank(modules: Mapping[str, tuple[int, int]], rank: int) -> None:
    """Checks that a new adapter of `rank` makes sense on every module: a product has no higher rank.

    Raises:
        AdapterError: It is larger than the smallest module is wide.
    """
    name, (num_in, num_out) = min(modules.items(), key=lambda item: min(item[1]))
    most = min(num_in, num_out)
    if not 1 <= rank <= most:
        raise AdapterError(
            f"rank is {rank}, expected 1 to {most}: the smallest of the chosen layers, {name}, has {num_in} "
            f"inputs and {num_out} outputs"
        )


def initial_adapter(
    modules: Mapping[str, tuple[int, int]], *, rank: int, scale: float, seed: int
) -> LoraAdapter:
    """Draws the adapter that training starts from: it changes nothing yet, as every `b` is zero.

    `a` is drawn as PEFT and mlx-lm draw it (Kaiming-uniform with a = sqrt 5): U(-1, 1) / sqrt(in_features).

    Args:
        modules: Name to (in_features, out_features).
        rank: Of every module, at least 1.
        scale: The number that is multiplied.
        seed: The same seed and modules give the same adapter on every machine.

    Raises:
        AdapterError: `rank` is below 1.
    """
    if rank < 1:
        raise AdapterError(f"rank is {rank}, expected at least 1")
    rng = np.random.default_rng(seed)
    initial = {}
    for name, (num_in, num_out) in sorted(modules.items()):
        a = (2 * rng.random((rank, num_in), dtype=np.float32) - 1) / np.float32(np.sqrt(num_in))
        initial[name] = Factors(a, np.zeros((num_out, rank), np.float32), scale)
    return LoraAdapter(initial)


def _faults(name: str, factors: Factors) -> Iterator[Fault]:
    a, b = factors.a, factors.b
    if a.ndim != 2 or b.ndim != 2:
        yield Fault(f"{name}: a {a.shape} and b {b.shape} must be matrices", "modules without two matrices")
    elif a.shape[0] != b.shape[1] or a.shape[0] == 0:
        text = f"{name}: a {a.shape} and b {b.shape} must share one rank, a (rank, in) and b (out, rank)"
        yield Fault(text, "modules whose a and b have two ranks")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        yield Fault(
            f"{name}: has entries that are not finite", "modules have entries that are not finite", name
        )
    if not np.isfinite(factors.scale):
        text = f"{name}: scale is {factors.scale}, expected a finite number"
        yield Fault(text, "modules have a scale that is no finite number", f"{name} has {factors.scale}")


def _stored(factors: Factors) -> Factors:
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is a fault
        a = np.ascontiguousarray(factors.a, dtype=np.float32)
        b = np.ascontiguousarray(factors.b, dtype=np.float32)
    return Factors(a, b, float(factors.scale))
