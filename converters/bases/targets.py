"""Which linear layers of a base model are meant by a few words, and the words for some of its layers."""

import re
from collections.abc import Iterable

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


def _is_target(name: str, target: str) -> bool:
    if target == ALL_LINEAR:
        return not _HEAD.search(name)
    return f".{name}".endswith(f".{target}")


def _of_last(num_layers: int, modules: Modules) -> Modules:
    """Selects the modules in the last so many blocks."""
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
