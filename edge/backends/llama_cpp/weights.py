"""Products with a model's weights as they lie in memory, mapped from the file and often quantised.

A quantised weight is dequantised block by block into a small buffer and multiplied at once, so a model in
4 bits needs no float32 copy. llama.cpp's own backward pass dequantises a whole weight for every token.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from edge.backends.llama_cpp import native
from edge.backends.llama_cpp.native import Array

BLOCK_VALUES = 1 << 19  # 2 MB, which stay in the processor's cache
T = TypeVar("T")
R = TypeVar("R")


class Weight(NamedTuple):
    """A matrix of shape (num_out, num_in), rows contiguous, of any type of ggml."""

    kind: int  # ggml_type
    address: int
    row_bytes: int
    num_in: int
    num_out: int


class Threads:
    """A few threads that share work in equal parts, always the same ones: sums come out alike each time.

    BLAS is held to one thread of its own meanwhile. OpenBLAS's threads wait for each other by spinning, and
    with two other programs on two cores a step took 26 s instead of 0.6.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count)
        self._libraries = ThreadpoolController()

    def alone(self) -> Any:
        """Opens a context in which BLAS uses one thread."""
        return self._libraries.limit(limits=1, user_api="blas")

    def split(self, total: int) -> list[range]:
        """Splits `total` things into as many parts as there are threads, or fewer."""
        ends = [total * part // self.count for part in range(self.count + 1)]
        return [range(begin, end) for begin, end in pairwise(ends) if begin < end]

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Returns the results in order; the first item is this thread's own."""
        others = [self._pool.submit(function, item) for item in items[1:]]
        return [*(function(item) for item in items[:1]), *(other.result() for other in others)]

    def share(self, function: Callable[[T], R], items: Sequence[T], *, is_small: bool) -> list[R]:
        """Returns the results in order; small work stays in this thread."""
        if is_small or len(items) < 2:
            return [function(item) for item in items]
        parts = self.map(lambda part: [function(items[number]) for number in part], self.split(len(items)))
        return [result for part in parts for result in part]


class Multiplier:
    """Products with weights, by several threads.

    Args:
        threads: Share the work.
        block_values: Dequantised at a time by each thread.
        small_product: Multiplications for which other threads are not worth waking.
    """

    def __init__(
        self, threads: Threads, block_values: int = BLOCK_VALUES, small_product: int = 1 << 22
    ) -> None:
        self.threads, self.block_values, self.small_product = threads, block_values, small_product
        self._local = threading.local()

    def backward(self, dy: Array, weight: Weight) -> Array:
        """Computes `dy @ weight`: (tokens, num_out) to (tokens, num_in)."""
        is_small = len(dy) * weight.num_in * weight.num_out < self.small_product
        parts = [range(weight.num_out)] if is_small else self.threads.split(weight.num_out)
        first, *others = self.threads.map(lambda part: self._sum(dy, weight, part), parts)
        for other in others:
            first += other
        return first

    def blocks(self, weight: Weight, part: range) -> Iterator[tuple[int, Array]]:
        """Yields first row and rows in float32, a block at a time; each is gone with the next."""
        size = max(1, self.block_values // weight.num_in)
        for first in range(part.start, part.stop, size):
            count = min(size, part.stop - first)
            if weight.kind == native.F32:
                yield first, _as_it_lies(weight)[first : first + count]
            else:
                yield first, self._dequantised(weight, first, count)

    def _sum(self, dy: Array, weight: Weight, part: range) -> Array:
        if weight.kind == native.F32:
            return dy[:, part.start : part.stop] @ _as_it_lies(weight)[part.start : part.stop]
        dx: Array | None = None
        for first, rows in self.blocks(weight, part):
            product = dy[:, first : first + len(rows)] @ rows
            dx = product if dx is None else np.add(dx, product, out=dx)
        assert dx is not None  # a part has rows
        return dx

    def _dequantised(self, weight: Weight, first: int, count: int) -> Array:
        buffer: Array | None = getattr(self._local, "buffer", None)
        if buffer is None or buffer.size < count * weight.num_in:
            buffer = self._local.buffer = np.empty(count * weight.num_in, np.float32)
        convert = native.to_float(weight.kind)
        convert(weight.address + first * weight.row_bytes, buffer.ctypes.data, count * weight.num_in)
        return buffer[: count * weight.num_in].reshape(count, weight.num_in)


def _as_it_lies(weight: Weight) -> Array:
    values = (ctypes.c_char * (4 * weight.num_in * weight.num_out)).from_address(weight.address)
    return np.ndarray((weight.num_out, weight.num_in), np.float32, memoryview(values))
