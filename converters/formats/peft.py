"""PEFT's adapter folder: adapter_config.json and adapter_model.safetensors, both ways.

PEFT multiplies by lora_alpha / r, or by lora_alpha / sqrt(r) with rsLoRA, and may give single modules their
own r and lora_alpha by patterns. The factors are carried to the last bit. So is the scale where some
lora_alpha gives it; elsewhere it is off by one rounding in float64, far below float32's precision.
Of the machine that writes nothing goes into the file but what `about` holds: the base's name or path.

Source: peft 0.21, tuners/lora/config.py and utils/save_and_load.py.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from safetensors.numpy import save

from converters.adapter import LoraAdapter
from converters.bases.contract import Modules
from converters.bases.targets import endings
from converters.errors import AdapterError
from converters.files.atomic import write_atomic
from converters.formats.about import NOTHING, About, read_license
from converters.formats.adapter_config import CONFIG, read_config
from converters.formats.folding import find_alpha
from converters.formats.layout import (
    Faults,
    Layout,
    check_writable,
    read_adapter,
    read_coverage,
    to_tensors,
)

WEIGHTS = "adapter_model.safetensors"
LAYOUT = Layout("base_model.model.", ".lora_A.weight", ".lora_B.weight", is_transposed=False)

# Each changes what the adapted model computes beyond scale * B @ A; harmless where it is absent or empty.
_REFUSED = {
    "use_dora": "DoRA",
    "lora_bias": "biases in the factors",
    "modules_to_save": "whole modules trained",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "parameters outside linear layers",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
_FACTORS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")  # agree with the adapter
_CHOSEN = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_PLAIN = {"peft_type": "LORA", "bias": "none", "use_dora": False}
# Other initialisations, PiSSA for one, change the base model's weights when the adapter is loaded.
_PLAIN_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


class _Config(msgspec.Struct, frozen=True):
    """The part of adapter_config.json that says how the factors are multiplied."""

    peft_type: str
    r: int
    lora_alpha: float
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None

    def rank(self, name: str) -> int:
        """Returns the rank of a module."""
        return int(_by_pattern(self.rank_pattern or {}, name, self.r))

    def scale(self, name: str, rank: int) -> float:
        """Returns what PEFT's LoraLayer multiplies a module by."""
        alpha = _by_pattern(self.alpha_pattern or {}, name, self.lora_alpha)
        return alpha / _divisor(rank, is_rslora=self.use_rslora)


def load_peft(folder: Path, modules: Modules | None = None) -> LoraAdapter:
    """Reads the LoRA adapter that PEFT saved in `folder`.

    Args:
        folder: Holds adapter_config.json and adapter_model.safetensors.
        modules: The base model's, to check names and shapes against.

    Raises:
        UnsupportedAdapter: It is more than LoRA on linear layers of this base; everything is named at once.
        AdapterError: It is missing, damaged, or its factors do not agree with its config.
    """
    config, raw = read_config(folder, _Config, "PEFT")
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise AdapterError(f"{folder}: is pickled; save it again with peft's safe_serialization=True")
    faults = Faults(str(folder), unsupported=list(_unsupported(config, raw)))
    return read_adapter(folder / WEIGHTS, LAYOUT, faults, modules, config.rank, config.scale)


def read_peft_about(folder: Path) -> About:
    """Reads what the config in `folder` says beside the factors.

    Raises:
        AdapterError: It is missing, or none of PEFT's.
    """
    _, raw = read_config(folder, _Config, "PEFT")
    covers = read_coverage(folder / WEIGHTS, LAYOUT)
    base = raw.pop("base_model_name_or_path", None)
    return About(
        base=base if isinstance(base, str) else None, peft=raw, covers=covers, license=read_license(folder)
    )


def save_peft(
    adapter: LoraAdapter, folder: Path, modules: Modules | None = None, about: About = NOTHING
) -> None:
    """Writes `adapter` as PEFT 0.21 does; `folder` is made where it is missing.

    Args:
        adapter: Has at least one module.
        folder: Files of the same names are replaced.
        modules: The base model's: checked against, and used to name target modules by their endings.
        about: The base's name, and settings to keep.

    Raises:
        AdapterError: The adapter has no modules: PEFT cannot load that.
        UnsupportedAdapter: Naming the modules that the base model lacks or has otherwise.
    """
    check_writable(adapter, folder, "PEFT's format", modules)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / WEIGHTS, save(to_tensors(adapter, LAYOUT), metadata={"format": "pt"}))
    config = _config(adapter, modules, about)
    write_atomic(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True).encode())


def _unsupported(config: _Config, raw: Mapping[str, Any]) -> Iterator[str]:
    """Finds settings that change what the adapted model computes beyond scale * B @ A."""
    if config.peft_type != "LORA":
        yield f"peft_type is {config.peft_type}, expected LORA"
    if config.bias != "none":
        yield f"bias is {config.bias!r}, expected 'none'"
    if config.init_lora_weights not in _PLAIN_INITIALISATIONS:
        yield (
            f"init_lora_weights is {config.init_lora_weights!r}, which changes the base model; save it from "
            "PEFT with path_initial_model_for_weight_conversion"
        )
    yield from (f"{key} is set ({what})" for key, what in _REFUSED.items() if raw.get(key))


def _config(adapter: LoraAdapter, modules: Modules | None, about: About) -> dict[str, Any]:
    kept = {
        key: value
        for key, value in about.settings("peft", adapter, _CHOSEN).items()
        if not (key in _REFUSED and value)  # it came through another tool's file: nobody checked it
    }
    plain = {
        "auto_mapping": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "revision": None,
        "target_modules": endings(list(adapter.modules), modules or {}),
        "task_type": "CAUSAL_LM",
    }
    factors = {} if _describes(kept, adapter) else _factors(adapter)
    return {**plain, **kept, **_PLAIN, **factors, "base_model_name_or_path": about.base}


def _describes(settings: Mapping[str, Any], adapter: LoraAdapter) -> bool:
    """Tells whether PEFT would multiply by `settings` as `adapter` says, to the last bit."""
    try:
        given = {key: settings[key] for key in _FACTORS if key in settings}
        config = msgspec.convert({"peft_type": "LORA", **given}, _Config)
        return all(
            config.rank(name) == f.rank and config.scale(name, f.rank) == f.scale for name, f in adapter
        )
    except (msgspec.ValidationError, AdapterError):
        return False


def _factors(adapter: LoraAdapter) -> dict[str, Any]:
    """Lists the settings that make PEFT multiply as `adapter` says."""
    is_rslora = not _is_exact(adapter, is_rslora=False) and _is_exact(adapter, is_rslora=True)
    ranks = {name: factors.rank for name, factors in adapter}
    alphas = {name: _alpha(f.scale, f.rank, is_rslora=is_rslora) for name, f in adapter}
    rank, alpha = (Counter(values).most_common(1)[0][0] for values in (ranks.values(), alphas.values()))
    return {
        "alpha_pattern": {name: own for name, own in alphas.items() if own != alpha},
        "lora_alpha": alpha,
        "r": rank,
        "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
        "use_rslora": is_rslora,
    }


def _divisor(rank: int, *, is_rslora: bool) -> float:
    return math.sqrt(rank) if is_rslora else rank


def _alpha(scale: float, rank: int, *, is_rslora: bool) -> float:
    """Returns the lora_alpha that gives `scale`, to the last bit where one does; whole numbers as such."""
    alpha = find_alpha(scale, _divisor(rank, is_rslora=is_rslora))
    return int(alpha) if alpha.is_integer() else alpha


def _is_exact(adapter: LoraAdapter, *, is_rslora: bool) -> bool:
    """Tells whether some lora_alpha gives every scale to the last bit."""
    divisors = [_divisor(f.rank, is_rslora=is_rslora) for _, f in adapter]
    return all(
        find_alpha(f.scale, divisor) / divisor == f.scale
        for (_, f), divisor in zip(adapter, divisors, strict=True)
    )


def _by_pattern(patterns: Mapping[str, float], name: str, default: float) -> float:
    """Finds by PEFT's own rule: the first pattern that matches the end of the name, from a dot on."""
    for key, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({key})$", name):
                return value
        except re.error as cause:
            raise AdapterError(f"{CONFIG}: pattern {key!r} is no regular expression: {cause}") from cause
    return default
