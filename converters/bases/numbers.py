"""A model's numbers under llama.cpp's keys, and what of a config.json llama.cpp cannot follow.

What differs between architectures stands in `converters.bases.architectures`.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from converters.bases.architectures import Exact, find_model_type
from converters.bases.config import (
    FULL,
    SLIDING,
    Config,
    head_dim_of,
    mistyped,
    num_heads_of,
    rope_of,
)
from converters.bases.folder import FolderBase
from converters.bases.gguf import GgufBase
from converters.errors import BaseModelError

FACTORS = "rope_freqs.weight"  # what rotary frequencies are divided by; computed from config.json
EMBEDDING = "model.embed_tokens.weight"
Number = int | float | str | list[bool]
Size = Annotated[int, Meta(ge=0, le=2**31)]  # 0 stands for none in some
Real = Annotated[float, Meta(ge=-1e30, le=1e30)]
Positive = Annotated[float, Meta(gt=0, le=1e30)]
_PLAIN: Mapping[str, tuple[str, type]] = {  # llama.cpp's key to the configuration's, and its type
    "context_length": ("max_position_embeddings", int),
    "embedding_length": ("hidden_size", int),
    "feed_forward_length": ("intermediate_size", int),
    "attention.head_count": ("num_attention_heads", int),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", float),
}
_GROUPS = {
    "": ("architecture", "block_count", "embedding_length", "feed_forward_length", "final_logit_softcapping"),
    "attention.": ("head_count", "head_count_kv", "key_length", "value_length", "layer_norm_rms_epsilon"),
    "attention.sliding_": ("window", "window_pattern"),
    "rope.": ("dimension_count", "freq_base", "freq_base_swa", "scaling.type", "scaling.factor"),
}
_COMPARED = frozenset(f"{group}{key}" for group, keys in _GROUPS.items() for key in keys)
_SCALED_BY: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_NO_PART = ("context_length", "vocab_size")  # in what the weights compute
_SCALAR = 256  # Gemma's query_pre_attn_scalar where config.json has none
_GEMMA_27B_LAYERS = 62  # llama.cpp scales that one's scores by another rule


class _Typed(Struct):
    """What of config.json is computed with, as it must be."""

    hidden_size: Size | None
    intermediate_size: Size | None
    max_position_embeddings: Size | None
    num_attention_heads: Size | None
    num_key_value_heads: Size | None
    num_hidden_layers: Size | None
    head_dim: Size | None
    sliding_window: Size | None
    sliding_window_pattern: Size | None
    _sliding_window_pattern: Size | None
    rms_norm_eps: Real | None
    rope_theta: Real | None
    rope_local_base_freq: Real | None
    query_pre_attn_scalar: Real | None
    final_logit_softcapping: Real | None
    hidden_act: str | None
    hidden_activation: str | None
    layer_types: list[str] | None


class _Rope(Struct):
    """The same of a rotary embedding's parameters."""

    rope_type: str
    rope_theta: Positive | None
    factor: Positive | None
    low_freq_factor: Positive | None
    high_freq_factor: Positive | None
    original_max_position_embeddings: Size | None
    partial_rotary_factor: Positive | None


def read_numbers(base: FolderBase, exact: Exact) -> dict[str, Number]:
    """Returns llama.cpp's keys without the architecture, and their values.

    Args:
        base: The model.
        exact: What its config may ask for.

    Raises:
        BaseModelError: With everything in config.json that is missing or that llama.cpp computes otherwise.
    """
    config = base.config
    ropes = (rope_of(config, layers, exact.rope_theta) for layers in (FULL, SLIDING))
    if wrong := [*mistyped(config, _Typed), *(fault for rope in ropes for fault in mistyped(rope, _Rope))]:
        raise BaseModelError.of(str(base.path / "config.json"), dict.fromkeys(wrong))
    missing = [key for key, _ in _PLAIN.values() if not config.get(key)]
    if missing or EMBEDDING not in base.weights:
        lacks = ", ".join([*missing, *([] if EMBEDDING in base.weights else [f"the tensor {EMBEDDING}"])])
        raise BaseModelError(f"{base.path}: lacks {lacks}; a GGUF file needs it")
    if faults := list(_faults(config, exact)):
        raise BaseModelError.of(f"{base.path}: llama.cpp does not compute the same", faults)
    numbers: dict[str, Number] = {key: kind(config[name]) for key, (name, kind) in _PLAIN.items()}
    head_dim, rope = int(head_dim_of(config, exact.head_dim)), _rope(config, exact.rope_theta)
    if exact.ignores_window and config.get("sliding_window"):
        numbers["context_length"] = min(config["max_position_embeddings"], config["sliding_window"])
    return numbers | {
        "block_count": base.num_layers,
        "vocab_size": base.weights[EMBEDDING].tensors[EMBEDDING].shape[0],
        "attention.head_count_kv": int(num_heads_of(config, "num_key_value_heads")),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": int(head_dim * float(rope.get("partial_rotary_factor", 1.0))),
        **_rope_numbers(rope),
        **(_sliding_numbers(config, base.num_layers) if exact.has_sliding_layers else {}),
    }


def hub_numbers(base: FolderBase) -> dict[str, Number] | None:
    """Returns what a GGUF file of this model must say of itself; None where llama.cpp has it not exactly."""
    architecture = find_model_type(base.config.get("model_type"))
    if architecture is None or architecture.exact is None:
        return None
    try:
        numbers = read_numbers(base, architecture.exact)
    except BaseModelError:
        return None
    named: dict[str, Number] = {"architecture": architecture.name}
    return named | {key: value for key, value in numbers.items() if key not in _NO_PART}


def file_numbers(base: GgufBase) -> dict[str, Number]:
    """Returns the numbers of a GGUF file, those that llama.cpp takes for granted filled in."""
    told = {
        key.removeprefix(base.key("")): value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in base.metadata.items()
        if key.startswith(base.key(""))
    }
    numbers: dict[str, Any] = _granted(base) | told
    every = numbers.get("attention.sliding_window_pattern")
    if type(every) is int and every > 0:
        numbers["attention.sliding_window_pattern"] = [bool((n + 1) % every) for n in range(base.num_layers)]
    if numbers.get("rope.scaling.type") == "none":
        del numbers["rope.scaling.type"]
    return {key: value for key, value in numbers.items() if key in _COMPARED}


def rope_factors(config: Config, exact: Exact) -> NDArray[np.float32] | None:
    """Returns what Llama 3's scaling divides each rotary frequency by, (head_dim / 2,); None without it."""
    rope = _rope(config, exact.rope_theta)
    if rope["rope_type"] != "llama3":
        return None
    head_dim = int(head_dim_of(config, exact.head_dim))
    turns = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)  # wave length
    context, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((context / turns - low) / (high - low), 0, 1)
    factors: NDArray[np.float32] = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return factors


def _faults(config: Config, exact: Exact) -> Iterator[str]:
    kind, rope, head_dim = (
        config["model_type"],
        _rope(config, exact.rope_theta),
        head_dim_of(config, exact.head_dim),
    )
    activation = config.get("hidden_act") or config.get("hidden_activation")
    if activation not in (None, exact.activation):
        yield f"its activation is {activation}, expected {exact.activation}"
    if rope["rope_type"] not in exact.scalings:
        yield f"its RoPE scaling is {rope['rope_type']}, expected {' or '.join(exact.scalings)}"
    if lacks := [key for key in _SCALED_BY.get(rope["rope_type"], ()) if rope.get(key) is None]:
        yield f"its RoPE scaling {rope['rope_type']} lacks {', '.join(lacks)}"
    elif rope["rope_type"] == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        yield "its RoPE scaling has a high_freq_factor that is not above its low_freq_factor"
    if "partial_rotary_factor" in rope and not exact.has_partial_rotary:
        yield f"partial_rotary_factor is {rope['partial_rotary_factor']}, expected 1"
    if config.get("attention_bias") and not exact.has_bias:
        yield f"attention_bias, which llama.cpp's {kind} has not"
    if config.get("use_sliding_window"):
        yield "use_sliding_window"
    if not exact.has_own_head_dim and head_dim * config["num_attention_heads"] != config["hidden_size"]:
        yield f"head_dim is {head_dim}, expected hidden_size / num_attention_heads"
    if exact.has_sliding_layers:
        yield from _gemma_faults(config, head_dim)


def _gemma_faults(config: Config, head_dim: int) -> Iterator[str]:
    """Finds what llama.cpp computes otherwise where some layers see a window, as Gemma's do."""
    if config.get("use_bidirectional_attention"):
        yield "use_bidirectional_attention"
    if config.get("attn_logit_softcapping"):
        yield "attn_logit_softcapping"
    if rope_of(config, SLIDING)["rope_type"] != "default":
        yield "scaled RoPE in its sliding layers"
    if not config.get("sliding_window"):
        yield "it has no sliding_window"
    heads = config["hidden_size"] // config["num_attention_heads"]
    expected = heads if config.get("num_hidden_layers") == _GEMMA_27B_LAYERS else head_dim
    if config.get("query_pre_attn_scalar", _SCALAR) != expected:
        yield f"query_pre_attn_scalar is {config.get('query_pre_attn_scalar', _SCALAR)}, expected {expected}"


def _sliding_numbers(config: Config, num_layers: int) -> dict[str, Number]:
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    layers = config.get("layer_types") or [SLIDING if (n + 1) % every else FULL for n in range(num_layers)]
    numbers: dict[str, Number] = {
        "attention.sliding_window": int(config["sliding_window"]),
        "attention.sliding_window_pattern": [kind == SLIDING for kind in layers],
        "rope.freq_base_swa": _rope(config, 1e4, SLIDING)["rope_theta"],
    }
    if config.get("final_logit_softcapping"):
        numbers["final_logit_softcapping"] = float(config["final_logit_softcapping"])
    return numbers


def _rope(config: Config, default_theta: float, layers: str = FULL) -> dict[str, Any]:
    """Returns the parameters of the rotary embedding, its base a number whatever config.json has."""
    rope = rope_of(config, layers, default_theta)
    return rope | {"rope_theta": float(rope["rope_theta"] or default_theta)}


def _rope_numbers(rope: Mapping[str, Any]) -> dict[str, Number]:
    numbers: dict[str, Number] = {"rope.freq_base": rope["rope_theta"]}
    if rope["rope_type"] == "linear":
        numbers |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    return numbers


def _granted(base: GgufBase) -> dict[str, Any]:
    """Returns what llama.cpp takes for granted where the file does not tell."""
    heads = base.number("attention.head_count")
    key_length = base.key("attention.key_length")
    head_dim = base.metadata.get(key_length, base.number("embedding_length") // heads)
    granted: dict[str, Any] = {
        "architecture": base.architecture.name,
        "attention.head_count_kv": heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": 1e4,
    }
    if base.architecture.exact and base.architecture.exact.has_sliding_layers:
        granted |= {"rope.freq_base_swa": 1e4, "attention.sliding_window_pattern": 6}
    return granted
