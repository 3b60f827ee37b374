"""A model's numbers under llama.cpp's keys, from config.json or from a GGUF file's metadata.

From config.json, also what of it llama.cpp cannot follow.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.bases.folder import BaseModel
from converters.bases.gguf import GgufBase
from converters.errors import BaseModelError

ARCHITECTURES: Mapping[str, str] = {  # model_type in config.json to llama.cpp's name
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "olmo2": "olmo2",
    "phi3": "phi3",
    "gemma3_text": "gemma3",
}
FACTORS = "rope_freqs.weight"  # what rotary frequencies are divided by; computed from config.json
EMBEDDING = "model.embed_tokens.weight"
Number = int | float | str | list[bool]
_PLAIN: Mapping[str, tuple[str, type]] = {  # llama.cpp's key to the configuration's, and its type
    "context_length": ("max_position_embeddings", int),
    "embedding_length": ("hidden_size", int),
    "feed_forward_length": ("intermediate_size", int),
    "attention.head_count": ("num_attention_heads", int),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", float),
}
_NO_PART = ("context_length", "vocab_size")  # in what the weights compute
_COMPARED = {
    "architecture",
    "block_count",
    "embedding_length",
    "feed_forward_length",
    "final_logit_softcapping",
}
_COMPARED |= {f"attention.head_count{kind}" for kind in ("", "_kv")}
_COMPARED |= {f"attention.{key}" for key in ("key_length", "value_length", "layer_norm_rms_epsilon")}
_COMPARED |= {"attention.sliding_window", "attention.sliding_window_pattern", "rope.dimension_count"}
_COMPARED |= {f"rope.{key}" for key in ("freq_base", "freq_base_swa", "scaling.type", "scaling.factor")}
_WINDOWED = ("mistral", "phi3")  # llama.cpp lets them see everything: the same up to the window's width
_BIASED = ("llama", "mistral")  # whose output projections llama.cpp gives a bias
_OWN_HEADS = ("llama", "mistral", "qwen3", "gemma3_text")  # heads need not add up to the hidden size
_GEMMA = "gemma3_text"
_GEMMA_27B_LAYERS = 62  # llama.cpp scales that one's scores by another rule


def read_numbers(base: BaseModel) -> dict[str, Number]:
    """llama.cpp's key without the architecture to its value, for a model of a known architecture.

    Raises:
        BaseModelError: With everything in config.json that is missing or that llama.cpp computes otherwise.
    """
    config = base.config
    missing = [key for key, _ in _PLAIN.values() if not config.get(key)]
    if missing or EMBEDDING not in base.weights:
        lacks = ", ".join([*missing, *([] if EMBEDDING in base.weights else [f"the tensor {EMBEDDING}"])])
        raise BaseModelError(f"{base.path}: lacks {lacks}; a GGUF file needs it")
    faults = list(_faults(config))
    if faults:
        raise BaseModelError.of(f"{base.path}: llama.cpp does not compute the same", faults)
    numbers: dict[str, Number] = {key: kind(config[name]) for key, (name, kind) in _PLAIN.items()}
    kind, head_dim = config["model_type"], _head_dim(config)
    if kind in _WINDOWED and config.get("sliding_window"):
        numbers["context_length"] = min(config["max_position_embeddings"], config["sliding_window"])
    return numbers | {
        "block_count": base.num_layers,
        "vocab_size": base.weights[EMBEDDING].tensors[EMBEDDING].shape[0],
        "attention.head_count_kv": _num_kv_heads(config),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": int(head_dim * rope_of(config).get("partial_rotary_factor", 1.0)),
        **_rope_numbers(config),
        **(_gemma_numbers(config, base.num_layers) if kind == _GEMMA else {}),
    }


def hub_numbers(base: BaseModel) -> dict[str, Number] | None:
    """What a GGUF file of this model must say of itself; None for a model that llama.cpp has not exactly."""
    if base.config.get("model_type") not in ARCHITECTURES:
        return None
    try:
        numbers = read_numbers(base)
    except BaseModelError:
        return None
    named: dict[str, Number] = {"architecture": ARCHITECTURES[base.config["model_type"]]}
    return named | {key: value for key, value in numbers.items() if key not in _NO_PART}


def file_numbers(base: GgufBase) -> dict[str, Number]:
    """The numbers of a GGUF file, those that llama.cpp takes for granted filled in."""
    arch, layers = base.architecture, base.num_layers
    told = {
        key.removeprefix(f"{arch}."): value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in base.metadata.items()
        if key.startswith(f"{arch}.")
    }
    heads = base.number("attention.head_count")
    head_dim = told.get("attention.key_length", base.number("embedding_length") // heads)
    granted: dict[str, Any] = {
        "architecture": arch,
        "attention.head_count_kv": heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": 1e4,
    }
    if arch == ARCHITECTURES[_GEMMA]:
        granted |= {"rope.freq_base_swa": 1e4, "attention.sliding_window_pattern": 6}
    numbers: dict[str, Any] = granted | told
    every = numbers.get("attention.sliding_window_pattern")
    if isinstance(every, int):
        numbers["attention.sliding_window_pattern"] = [bool((layer + 1) % every) for layer in range(layers)]
    if numbers.get("rope.scaling.type") == "none":
        del numbers["rope.scaling.type"]
    return {key: value for key, value in numbers.items() if key in _COMPARED}


def permuted_heads(config: Mapping[str, Any]) -> dict[str, int]:
    """Modules whose rows llama.cpp wants in another order for its RoPE, to their number of heads.

    In its Llama family a head's rotated pairs are neighbours; in transformers they are half a head apart.
    """
    if config["model_type"] not in ("llama", "mistral"):
        return {}
    return {"q_proj": config["num_attention_heads"], "k_proj": _num_kv_heads(config)}


def rope_of(config: Mapping[str, Any], layers: str = "full_attention") -> dict[str, Any]:
    """The rotary embedding's parameters, alike from configurations of transformers 4 and 5."""
    given = config.get("rope_parameters") or {}
    rope = dict(given.get(layers, given))
    if not given:
        is_local = layers != "full_attention"
        theta = config.get("rope_local_base_freq" if is_local else "rope_theta")
        rope = {"rope_theta": theta, **({} if is_local else config.get("rope_scaling") or {})}
    default = 1e6 if config["model_type"] == _GEMMA and layers == "full_attention" else 1e4
    rope["rope_theta"] = float(rope.get("rope_theta") or default)
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    return rope | {"partial_rotary_factor": _partial(config, rope)}


def rope_factors(config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """What Llama 3's scaling divides each rotary frequency by, of shape (head_dim / 2,); None without it."""
    rope = rope_of(config)
    if rope["rope_type"] != "llama3":
        return None
    head_dim = _head_dim(config)
    turns = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)  # wave length
    context, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((context / turns - low) / (high - low), 0, 1)
    factors: NDArray[np.float32] = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return factors


def _faults(config: Mapping[str, Any]) -> Iterator[str]:
    kind, rope = config["model_type"], rope_of(config)
    activation = config.get("hidden_act") or config.get("hidden_activation")
    expected = "gelu_pytorch_tanh" if kind == _GEMMA else "silu"
    if activation not in (None, expected):
        yield f"its activation is {activation}, expected {expected}"
    scalings = ["default", *(["linear"] if kind != "phi3" else []), *(["llama3"] if kind in _BIASED else [])]
    if rope["rope_type"] not in scalings:
        yield f"its RoPE scaling is {rope['rope_type']}, expected {' or '.join(scalings)}"
    if rope["partial_rotary_factor"] != 1 and kind != "phi3":
        yield f"partial_rotary_factor is {rope['partial_rotary_factor']}, expected 1"
    if config.get("attention_bias") and kind not in _BIASED and kind != "qwen2":
        yield f"attention_bias, which llama.cpp's {kind} has not"
    if config.get("use_sliding_window"):
        yield "use_sliding_window"
    if kind not in _OWN_HEADS and _head_dim(config) * config["num_attention_heads"] != config["hidden_size"]:
        yield f"head_dim is {_head_dim(config)}, expected hidden_size / num_attention_heads"
    if kind == _GEMMA:
        yield from _gemma_faults(config)


def _gemma_faults(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("use_bidirectional_attention"):
        yield "use_bidirectional_attention"
    if config.get("attn_logit_softcapping"):
        yield "attn_logit_softcapping"
    if rope_of(config, "sliding_attention")["rope_type"] != "default":
        yield "scaled RoPE in its sliding layers"
    heads = config["hidden_size"] // config["num_attention_heads"]
    expected = heads if config.get("num_hidden_layers") == _GEMMA_27B_LAYERS else _head_dim(config)
    if config.get("query_pre_attn_scalar", 256) != expected:
        yield f"query_pre_attn_scalar is {config.get('query_pre_attn_scalar', 256)}, expected {expected}"


def _gemma_numbers(config: Mapping[str, Any], num_layers: int) -> dict[str, Number]:
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    layers = config.get("layer_types") or [
        "sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(num_layers)
    ]
    numbers: dict[str, Number] = {
        "attention.sliding_window": int(config["sliding_window"]),
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in layers],
        "rope.freq_base_swa": rope_of(config, "sliding_attention")["rope_theta"],
    }
    if config.get("final_logit_softcapping"):
        numbers["final_logit_softcapping"] = float(config["final_logit_softcapping"])
    return numbers


def _rope_numbers(config: Mapping[str, Any]) -> dict[str, Number]:
    rope = rope_of(config)
    numbers: dict[str, Number] = {"rope.freq_base": rope["rope_theta"]}
    if rope["rope_type"] == "linear":
        numbers |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    return numbers


def _partial(config: Mapping[str, Any], rope: Mapping[str, Any]) -> float:
    return float(rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)


def _head_dim(config: Mapping[str, Any]) -> int:
    if config.get("head_dim"):
        return int(config["head_dim"])
    if config["model_type"] == _GEMMA:
        return 256
    return int(config["hidden_size"] // config["num_attention_heads"])


def _num_kv_heads(config: Mapping[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])
