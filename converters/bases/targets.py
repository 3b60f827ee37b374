"""Which linear layers of a base model are meant by a few words, and whether an adapter's are among them."""

import re
from collections.abc import Iterable, Iterator, Mapping

from converters.adapter import LoraAdapter
from converters.bases.contract import Modules
from converters.errors import UnsupportedAdapter
from converters.faults import Fault

MAX_SHOWN = 12  # names of layers in a short message
ALL_LINEAR = "all-linear"  # among targets
ALL_LAYERS = -1
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output|score)$")
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def block_of(name: str) -> int | None:
    """Returns the number of the transformer block that a layer or weight is in; None for one outside."""
    found = _BLOCK.search(name)
    return int(found[1]) if found else None


def count_blocks(names: Iterable[str]) -> int:
    """Counts the transformer blocks that layers or weights are in."""
    return max((block + 1 for name in names if (block := block_of(name)) is not None), default=0)


def match_targets(
    modules: Modules, targets: Iterable[str], num_layers: int = ALL_LAYERS
) -> dict[str, tuple[int, int]]:
    """Selects the modules whose name is one of `targets` or ends in it: `q_proj` is every block's.

    Args:
        modules: Of the base model.
        targets: `all-linear` is every layer but the head, as in PEFT.
        num_layers: Only those in the last so many blocks; -1 is all, those outside the blocks too.

    Raises:
        UnsupportedAdapter: Naming every target that matches nothing, and what there is; or the model has
            fewer blocks.
    """
    wanted = list(targets)
    modules = _of_last(num_layers, modules)
    matched = {t: [name for name in modules if _is_target(name, t)] for t in wanted}
    missing = [target for target, names in matched.items() if not names]
    if missing or not wanted:
        there = sorted({name.rpartition(".")[2] for name in modules})
        told = f"no module is called {', '.join(missing) or 'nothing'}; the model has: "
        many = f"{', '.join(there[:MAX_SHOWN])} and {len(there) - MAX_SHOWN} more"
        brief = told + many if len(there) > MAX_SHOWN else ""
        raise UnsupportedAdapter.of("", [Fault(told + ", ".join(there), brief=brief)])
    chosen = {name for names in matched.values() for name in names}
    return {name: shape for name, shape in modules.items() if name in chosen}


def endings(names: list[str], modules: Modules) -> list[str]:
    """Shortens names to endings such as `q_proj` where they mean just these of the base's `modules`."""
    found = {name.rpartition(".")[2] for name in names}
    meant = {name for name in modules if name.rpartition(".")[2] in found}
    return sorted(found) if meant == set(names) else names


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


def _is_target(name: str, target: str) -> bool:
    if target == ALL_LINEAR:
        return not _HEAD.search(name)
    return f".{name}".endswith(f".{target}")


def _of_last(num_layers: int, modules: Modules) -> Modules:
    if num_layers == ALL_LAYERS:
        return modules
    num_blocks = count_blocks(modules)
    if not 0 < num_layers <= num_blocks:
        raise UnsupportedAdapter(
            f"num_layers is {num_layers}, expected 1 to {num_blocks}, the model's blocks, "
            f"or {ALL_LAYERS} for all"
        )
    last = range(num_blocks - num_layers, num_blocks)
    return {name: shape for name, shape in modules.items() if block_of(name) in last}
