"""What a model computes, as 64 hex digits: sha256 of its architecture's numbers and its weights.

The same for a Hugging Face folder, for its conversion by mlx-lm and for a GGUF file of the same values, for
one file and for shards, and for bfloat16, float16 and float32 as long as the values are the same. Of each
floating tensor, in order of names, the name, the shape and the values as little-endian float32 are hashed; of
one with more than 65,536 values 16 evenly spaced runs of 4,096, so that a large model takes seconds. (Single
values in even strides were dropped: they touch every page of the file.) Rotary frequencies and a tied head
are left out: not every tool stores them. Where mlx-lm stacks or drops weights (mixtures of experts, image
towers), its folder is a model of its own.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.bases.architectures import graph_of
from converters.bases.config import Config, head_dim_of, num_heads_of, rope_of

ReadValues = Callable[[int, int], NDArray[np.float32]]  # (first, count) of a flat tensor

RUN_VALUES = 4096  # values of one sampled run; a run of bfloat16 is two pages of a disk
NUM_RUNS = 16
_NORM_EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")


def fingerprint_of(config: Config, weights: Iterable[tuple[str, tuple[int, ...], ReadValues]]) -> str:
    """Hashes a model's configuration and, in order of names, its floating weights."""
    digest = hashlib.sha256(_architecture(config))
    for name, shape, read in weights:
        digest.update(f"{name} {shape}\n".encode())
        for first, count in _runs(prod(shape)):
            digest.update(read(first, count).astype("<f4").tobytes())
    return digest.hexdigest()


def _architecture(config: Config) -> bytes:
    """Returns the numbers that change what the weights compute, alike in configs of transformers 4 and 5."""
    numbers = {
        "model_type": graph_of(config.get("model_type")),
        "num_attention_heads": config.get("num_attention_heads"),
        "num_key_value_heads": num_heads_of(config, "num_key_value_heads"),
        "head_dim": head_dim_of(config),
        "norm_eps": next((config[key] for key in _NORM_EPS if key in config), None),
        "rope": rope_of(config),
    }
    return json.dumps(_floats(numbers), sort_keys=True).encode()


def _floats(value: Any) -> Any:
    """Turns numbers into floats: 10000 and 10000.0 are the same."""
    if isinstance(value, dict):
        return {key: _floats(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [_floats(entry) for entry in value]
    return float(value) if isinstance(value, int) else value


def _runs(size: int) -> Iterator[tuple[int, int]]:
    """Yields first and count of what is hashed of `size` values."""
    if size <= RUN_VALUES * NUM_RUNS:
        yield 0, size
    else:
        yield from ((i * (size - RUN_VALUES) // (NUM_RUNS - 1), RUN_VALUES) for i in range(NUM_RUNS))
