"""mlx-lm's adapter folder: adapter_config.json and adapters.safetensors, both ways.

mlx-lm stores the factors transposed, and knows one rank and one scale for the whole adapter. An adapter with
several still computes the same there, without any rounding: a smaller rank is filled up with zeros, and a
scale that differs by a power of two goes into `lora_b`. Any other scale is refused. What was filled and
folded stands in the config under `tunefleet`, which mlx-lm ignores, and is undone when the file is read.

Source: mlx-lm 0.32, tuner/utils.py (load_adapters, linear_to_lora_layers) and tuner/lora.py.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs
from safetensors.numpy import save

from converters.adapter import Factors, LoraAdapter
from converters.bases.contract import Modules
from converters.errors import UnsupportedAdapter
from converters.faults import Fault
from converters.files.atomic import write_atomic
from converters.formats.about import NOTHING, About, read_license
from converters.formats.adapter_config import CONFIG, read_config
from converters.formats.folding import Originals, fill, fold, most_frequent, unfill
from converters.formats.layout import (
    Faults,
    Layout,
    check_writable,
    read_adapter,
    read_coverage,
    to_tensors,
)

WEIGHTS = "adapters.safetensors"
LAYOUT = Layout("", ".lora_a", ".lora_b", is_transposed=True)
_PARAMETERS, _SHAPE = "lora_parameters", ("keys", "rank", "scale")
_FACTORS = ("fine_tune_type", _PARAMETERS, "num_layers", "model", "tunefleet")  # written anew
_IN_BLOCK = re.compile(r".*?\blayers\.(\d+)\.(.+)")


class _Parameters(msgspec.Struct, frozen=True):
    rank: int
    scale: float


class _Noted(Originals, frozen=True, omit_defaults=True):
    """What mlx-lm passes over: what was filled up and folded, and what another tool's config said."""

    about: About = NOTHING


class _Config(msgspec.Struct, frozen=True):
    lora_parameters: _Parameters | None  # null where all weights were trained
    fine_tune_type: str = "lora"
    tunefleet: _Noted = _Noted()


def load_mlx(folder: Path, modules: Modules | None = None) -> LoraAdapter:
    """Reads the LoRA adapter that mlx-lm saved in `folder`.

    Args:
        folder: Holds adapter_config.json and adapters.safetensors.
        modules: The base model's, to check names and shapes against.

    Raises:
        UnsupportedAdapter: It is more than LoRA on linear layers of this base; everything is named at once.
        AdapterError: It is missing, damaged, or its factors do not agree with its config.
    """
    config, _ = read_config(folder, _Config, "mlx-lm")
    if config.fine_tune_type != "lora" or config.lora_parameters is None:
        raise UnsupportedAdapter(f"{folder}: fine_tune_type is {config.fine_tune_type!r}, expected 'lora'")
    rank, scale = config.lora_parameters.rank, config.lora_parameters.scale
    stored = read_adapter(
        folder / WEIGHTS, LAYOUT, Faults(str(folder)), modules, lambda _: rank, lambda _name, _rank: scale
    )
    return LoraAdapter({name: _undone(factors, name, config.tunefleet) for name, factors in stored})


def read_mlx_about(folder: Path) -> About:
    """Reads what the config in `folder` says beside the factors.

    Raises:
        AdapterError: It is missing, or none of mlx-lm's.
    """
    config, raw = read_config(folder, _Config, "mlx-lm")
    base, about, parameters = raw.get("model"), config.tunefleet.about, raw[_PARAMETERS] or {}
    is_same = read_coverage(folder / WEIGHTS, LAYOUT) == about.covers
    return structs.replace(
        about,
        base=base if isinstance(base, str) else None,
        mlx={key: value for key, value in raw.items() if key not in _FACTORS}
        | {_PARAMETERS: {key: value for key, value in parameters.items() if key not in _SHAPE}},
        covers=about.covers if is_same else "",
        license=read_license(folder),
    )


def save_mlx(
    adapter: LoraAdapter, folder: Path, modules: Modules | None = None, about: About = NOTHING
) -> None:
    """Writes `adapter` as mlx-lm does; `folder` is made where it is missing.

    Args:
        adapter: Has at least one module.
        folder: Files of the same names are replaced.
        modules: The base model's: checked against, and used to name layers as mlx-lm does.
        about: The base's name, and settings to keep.

    Raises:
        AdapterError: The adapter has no modules: mlx-lm has no name for that.
        UnsupportedAdapter: Scales that differ by more than a power of two, or modules that the base model
            lacks or has otherwise; all are named at once.
    """
    check_writable(adapter, folder, "mlx-lm's format", modules)
    rank, scale = adapter.max_rank, most_frequent(factors.scale for _, factors in adapter)
    uniform = _uniform(adapter, rank, scale)
    own = _Noted(
        ranks={name: f.rank for name, f in adapter if f.rank != rank},
        scales={name: f.scale for name, f in adapter if f.scale != scale},
        about=about.noted,
    )
    keys, num_layers = _keys(list(adapter.modules), modules)
    kept = about.mlx.get(_PARAMETERS) or {}
    config: dict[str, Any] = {
        **about.mlx,
        "fine_tune_type": "lora",
        "lora_parameters": {"dropout": 0.0, **kept, "keys": keys, "rank": rank, "scale": scale},
        "num_layers": num_layers,
    }
    if about.base:
        config["model"] = about.base
    if own != _Noted():
        config["tunefleet"] = msgspec.to_builtins(own)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / WEIGHTS, save(to_tensors(uniform, LAYOUT)))
    write_atomic(folder / CONFIG, json.dumps(config, indent=4).encode())


def _uniform(adapter: LoraAdapter, rank: int, scale: float) -> LoraAdapter:
    """Gives the same updates one rank and one scale, exactly.

    Raises:
        UnsupportedAdapter: Naming the modules whose scale cannot be carried exactly.
    """
    modules, faults = {}, []
    for name, factors in adapter:
        b = factors.b if factors.scale == scale else fold(factors.b, factors.scale, scale)
        if b is None:
            faults.append(Fault(f"{name} has scale {factors.scale}", "modules have other scales"))
        else:
            modules[name] = fill(Factors(factors.a, b, scale), rank)
    if faults:
        raise UnsupportedAdapter.of(
            f"mlx-lm has one scale for all modules, here {scale}; only one that differs by a power of two is "
            "carried exactly",
            faults,
        )
    return LoraAdapter(modules)


def _undone(factors: Factors, name: str, own: Originals) -> Factors:
    """Takes zeros and folded scales out again, unless later training has made them matter."""
    a, b, scale = unfill(factors, own.ranks.get(name, factors.rank))
    if name in own.scales:
        unfolded = fold(b, scale, own.scales[name])
        if unfolded is not None:
            b, scale = unfolded, own.scales[name]
    return Factors(a, b, scale)


def _keys(names: list[str], modules: Modules | None) -> tuple[list[str], int]:
    """Returns mlx-lm's `keys` and `num_layers`.

    Where the last blocks carry the same layers each, names within a block, as mlx-lm writes them; otherwise
    full names, which mlx-lm also takes, whatever `num_layers` says.
    """
    blocks = _by_block(names)
    num_blocks = max(_by_block(modules or names), default=-1) + 1
    layers = sorted(blocks.get(num_blocks - 1, set()))
    last = range(num_blocks - len(blocks), num_blocks)
    is_regular = set(blocks) == set(last) and all(blocks[i] == set(layers) for i in blocks)
    is_whole = modules is not None and len(names) == len(blocks) * len(layers)
    return (layers, len(blocks)) if is_regular and is_whole else (names, max(len(blocks), 1))


def _by_block(names: Iterable[str]) -> dict[int, set[str]]:
    blocks: dict[int, set[str]] = {}
    for match in _matches(names):
        blocks.setdefault(int(match[1]), set()).add(match[2])
    return blocks


def _matches(names: Iterable[str]) -> Iterator[re.Match[str]]:
    return (match for name in names if (match := _IN_BLOCK.fullmatch(name)))
