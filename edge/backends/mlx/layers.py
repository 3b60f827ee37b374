"""What the MLX backend computes itself: what a step is fed, masks of packed rows, a frozen head's loss.

Each shape is compiled once, so on a GPU there are to be few: arrays are filled up with what weighs nothing.
Imported by `mlx.py` alone, which loads OpenBLAS before MLX.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from edge.backends.batch_layout import find_labels, mean_weights
from edge.backends.contract import Batch, Precision
from edge.backends.shapes import round_up
from edge.errors import OutOfMemory

WIDTH_STEP = 32
_PRECISIONS: dict[mx.Dtype, Precision] = {  # a mixed model computes in the first that it has
    mx.float32: "float32",
    mx.bfloat16: "bfloat16",
    mx.float16: "float16",
}


class PackedRows:
    """In place of a layer's key and value cache: what mlx-lm's models ask for masks and offsets."""

    offset = 0

    def __init__(self, segments: mx.array) -> None:
        self.segments = segments

    def make_mask(self, width: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """True where a token is seen: (rows, 1, width, width)."""
        index = mx.arange(width)
        distance = index[:, None] - index[None]
        is_near = (distance >= 0) if window_size is None else (distance >= 0) & (distance < window_size)
        return (self.segments[:, None, :, None] == self.segments[:, None, None, :]) & is_near

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Nothing came before."""
        return keys, values


def feed(batch: Batch, total: float, *, is_compiling: bool, is_packing: bool) -> tuple[Any, ...]:
    """Tokens and segments, then where labels are in the flattened positions, their targets and weights.

    Args:
        batch: As the backend lays it out.
        total: What the weights are divided by.
        is_compiling: Shapes are to be few.
        is_packing: Several examples share a row; else there are no segments.
    """
    labels = find_labels(batch)
    width, count = batch.tokens.shape[1], len(labels.places)
    padded = -(-width // WIDTH_STEP) * WIDTH_STEP if is_compiling else width
    room = ((0, 0), (0, padded - width))
    index = labels.places // width * padded + labels.places % width
    extra = (0, round_up(count) - count if is_compiling else 0)
    return (
        mx.array(np.pad(batch.tokens, room)),
        mx.array(np.pad(batch.segments, room)) if is_packing else None,
        mx.array(np.pad(index, extra).astype(np.int32)),
        mx.array(np.pad(labels.targets, extra).astype(np.int32)),
        mx.array(np.pad(labels.weights / np.float32(total), extra)),
    )


def feed_means(batch: Batch, width: int, *, is_compiling: bool) -> mx.array:
    """What each position, in rows of `width`, counts in each example's mean: (examples, positions)."""
    room = ((0, 0), (0, width - batch.tokens.shape[1]))
    weights = mean_weights(batch._replace(segments=np.pad(batch.segments, room)))
    extra = round_up(len(weights)) - len(weights) if is_compiling else 0
    return mx.array(np.pad(weights, ((0, extra), (0, 0))))


def softmax_loss(logits: mx.array, targets: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
    """The sum of weighted cross entropies, and its gradient at the logits: (labels, vocabulary)."""
    shares = mx.softmax(logits, axis=-1)
    highest = logits.max(-1, keepdims=True) - mx.log(shares.max(-1, keepdims=True))  # log of the sum of exp
    losses = highest - mx.take_along_axis(logits, targets, axis=-1)
    chosen = mx.take_along_axis(shares, targets, axis=-1)
    return (losses * weights).sum(), mx.put_along_axis(shares, targets, chosen - 1, axis=-1) * weights


def are_near(found: mx.array, expected: mx.array) -> bool:
    """Whether two results are the same but for rounding."""
    tolerance = 1e-4 if expected.dtype == mx.float32 else 3e-2
    difference = (found - expected).astype(mx.float32).square().sum().sqrt()
    return bool((difference <= tolerance * expected.astype(mx.float32).square().sum().sqrt()).item())


def shape_of(linear: Any) -> tuple[int, int]:
    """In and out features of a layer, packed or not."""
    num_out, num_in = linear.weight.shape
    return (num_in * 32 // linear.bits if isinstance(linear, nn.QuantizedLinear) else num_in), num_out


def precision_of(model: Any) -> Precision:
    """What a model computes in: of a packed one the type of its scales."""
    found = {value.dtype for _, value in tree_flatten(model.parameters()) if value.dtype in _PRECISIONS}
    return next(name for dtype, name in _PRECISIONS.items() if dtype in found)


def count_weights(module: Any) -> int:
    """Of a module without those in it; packed ones count one by one."""
    if hasattr(module, "bits"):
        return int(module.weight.size * 32 // module.bits)
    return sum(value.size for value in module.values() if isinstance(value, mx.array))


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Names a want of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or any(word in str(error).lower() for word in ("malloc", "memory")):
            raise OutOfMemory(f"backend mlx: {error}") from error
        raise
