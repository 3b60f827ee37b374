"""A GGUF file's numbers, to be held against those of a folder (`converters.bases.numbers`)."""

from typing import Any

import numpy as np

from converters.bases.gguf import GgufBase
from converters.bases.numbers import Number

_COMPARED = frozenset(
    {
        "architecture",
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "final_logit_softcapping",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.scaling.type",
        "rope.scaling.factor",
    }
)


def file_numbers(base: GgufBase) -> dict[str, Number]:
    """Returns the numbers of a GGUF file, those that llama.cpp takes for granted filled in."""
    told = {
        key.removeprefix(base.key("")): value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in base.metadata.items()
        if key.startswith(base.key(""))
    }
    numbers: dict[str, Any] = _granted(base) | told
    every = numbers.get("attention.sliding_window_pattern")
    if isinstance(every, int):
        numbers["attention.sliding_window_pattern"] = [bool((n + 1) % every) for n in range(base.num_layers)]
    if numbers.get("rope.scaling.type") == "none":
        del numbers["rope.scaling.type"]
    return {key: value for key, value in numbers.items() if key in _COMPARED}


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
