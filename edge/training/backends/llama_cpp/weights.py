"""Products with a model's weights as they lie in memory, mapped from the file and often quantised.

A quantised weight is dequantised block by block into one small buffer and multiplied at once, so a model in
4 bits needs no float32 copy. llama.cpp's own backward pass dequantises a whole weight for every token.
"""

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.training.backends.llama_cpp import native

Array = NDArray[np.float32]
BLOCK_VALUES = 1 << 20  # dequantised at a time: 4 MB, which stay in the processor's cache


class Weight(NamedTuple):
    """A matrix of shape (num_out, num_in), rows contiguous, of any type of ggml."""

    kind: int  # ggml_type
    address: int
    row_bytes: int
    num_in: int
    num_out: int


class Multiplier:
    """Backward products with weights; holds the one buffer and the threads that fill it."""

    def __init__(self, num_threads: int) -> None:
        self._pool = ThreadPoolExecutor(num_threads)
        self._num_threads = num_threads
        self._buffer = np.empty(BLOCK_VALUES, np.float32)

    def backward(self, dy: Array, weight: Weight) -> Array:
        """`dy @ weight`: (tokens, num_out) to (tokens, num_in)."""
        if weight.kind == native.F32:
            return dy @ _as_it_lies(weight)
        dx: Array | None = None
        for first, rows in self.blocks(weight):
            part = dy[:, first : first + len(rows)] @ rows
            dx = part if dx is None else np.add(dx, part, out=dx)
        assert dx is not None  # a weight has rows
        return dx

    def blocks(self, weight: Weight) -> Iterator[tuple[int, Array]]:
        """First row and rows in float32, a block at a time; each is gone when the next is asked for."""
        size = max(1, min(weight.num_out, BLOCK_VALUES // weight.num_in))
        for first in range(0, weight.num_out, size):
            count = min(size, weight.num_out - first)
            if weight.kind == native.F32:
                yield first, _as_it_lies(weight)[first : first + count]
            else:
                yield first, self._dequantised(weight, first, count)

    def _dequantised(self, weight: Weight, first: int, count: int) -> Array:
        if self._buffer.size < count * weight.num_in:
            self._buffer = np.empty(count * weight.num_in, np.float32)
        convert, target = native.to_float(weight.kind), self._buffer.ctypes.data

        def fill(begin: int, end: int) -> None:
            convert(
                weight.address + (first + begin) * weight.row_bytes,
                target + 4 * begin * weight.num_in,
                (end - begin) * weight.num_in,
            )

        ends = [count * i // self._num_threads for i in range(self._num_threads + 1)]
        list(self._pool.map(fill, ends, ends[1:]))
        return self._buffer[: count * weight.num_in].reshape(count, weight.num_in)


def _as_it_lies(weight: Weight) -> Array:
    values = (ctypes.c_char * (4 * weight.num_in * weight.num_out)).from_address(weight.address)
    return np.ndarray((weight.num_out, weight.num_in), np.float32, memoryview(values))
