"""Whether an adapter's layers are a base model's."""

from collections.abc import Iterator, Mapping

from converters.adapter import LoraAdapter
from converters.bases.contract import Modules
from converters.errors import UnsupportedAdapter
from converters.faults import Fault


def check_fit(adapter: LoraAdapter, modules: Modules, where: str = "adapter") -> None:
    """Checks that every module of `adapter` is one of the base model's.

    Args:
        adapter: Of any modules.
        modules: The base model's.
        where: What an error's message begins with.

    Raises:
        UnsupportedAdapter: Naming all modules that the base lacks, or whose shapes differ, at once.
    """
    shapes = {name: (factors.a.shape[1], factors.b.shape[0]) for name, factors in adapter}
    if faults := list(fit_faults(shapes, modules)):
        raise UnsupportedAdapter.of(where, faults)


def fit_faults(shapes: Mapping[str, tuple[int, int]], modules: Modules) -> Iterator[Fault]:
    """Finds which modules with (in, out) features the base model's `modules` lack or have otherwise."""
    for name, shape in shapes.items():
        if name not in modules:
            text = f"the base model has no linear layer {name}"
            yield Fault(text, "modules that the base model does not have", name)
        elif tuple(modules[name]) != tuple(shape):
            text = f"{name} is for {shape} features (in, out), the base model has {tuple(modules[name])}"
            yield Fault(text, "modules are for other shapes than the base model's")
