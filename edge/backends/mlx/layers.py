"""What the MLX backend computes itself: masks of packed rows, a frozen head's loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from edge.backends.contract import Precision
from edge.errors import OutOfMemory

_PRECISIONS: dict[mx.Dtype, Precision] = {  # a mixed model computes in the first that it has
    mx.float32: "float32",
    mx.bfloat16: "bfloat16",
    mx.float16: "float16",
}


class PackedRows:
    """Stands in for a layer's key and value cache, which mlx-lm's models ask for masks and offsets."""

    offset = 0

    def __init__(self, segments: mx.array) -> None:
        self.segments = segments

    def make_mask(self, width: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """Returns where a token is seen: (rows, 1, width, width)."""
        index = mx.arange(width)
        distance = index[:, None] - index[None]
        is_near = (distance >= 0) if window_size is None else (distance >= 0) & (distance < window_size)
        return (self.segments[:, None, :, None] == self.segments[:, None, None, :]) & is_near

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Returns them as they are: nothing came before."""
        return keys, values


def softmax_loss(logits: mx.array, targets: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
    """Returns the sum of weighted cross entropies, and its gradient at the logits: (labels, vocabulary)."""
    shares = mx.softmax(logits, axis=-1)
    highest = logits.max(-1, keepdims=True) - mx.log(shares.max(-1, keepdims=True))  # log of the sum of exp
    losses = highest - mx.take_along_axis(logits, targets, axis=-1)
    chosen = mx.take_along_axis(shares, targets, axis=-1)
    return (losses * weights).sum(), mx.put_along_axis(shares, targets, chosen - 1, axis=-1) * weights


def are_near(found: mx.array, expected: mx.array) -> bool:
    """Tells whether two results are the same but for rounding."""
    tolerance = 1e-4 if expected.dtype == mx.float32 else 3e-2
    difference = (found - expected).astype(mx.float32).square().sum().sqrt()
    return bool((difference <= tolerance * expected.astype(mx.float32).square().sum().sqrt()).item())


def shape_of(linear: Any) -> tuple[int, int]:
    """Returns a layer's in and out features, packed or not."""
    num_out, num_in = linear.weight.shape
    return (num_in * 32 // linear.bits if isinstance(linear, nn.QuantizedLinear) else num_in), num_out


def precision_of(model: Any) -> Precision:
    """Returns what a model computes in: of a packed one the type of its scales."""
    found = {value.dtype for _, value in tree_flatten(model.parameters()) if value.dtype in _PRECISIONS}
    return next(name for dtype, name in _PRECISIONS.items() if dtype in found)


def count_weights(module: Any) -> int:
    """Counts a module's weights, without those of modules in it; packed ones count one by one."""
    if hasattr(module, "bits"):
        return int(module.weight.size * 32 // module.bits)
    return sum(value.size for value in module.values() if isinstance(value, mx.array))


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Raises OutOfMemory where MLX ran out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or any(word in str(error).lower() for word in ("malloc", "memory")):
            raise OutOfMemory(f"backend mlx: {error}") from error
        raise
