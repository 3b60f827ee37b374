"""What one pass through llama.cpp's graph leaves behind, and the gradients on the way back through it.

llama.cpp computes forward (`forward.py`); the backward pass is numpy. So one mechanism serves every
quantisation, every rank, and every architecture whose operations stand in `operations.py`, without an
optimiser graph of ggml's: that one dequantises a weight again for each token, holds three arrays of tokens x
vocabulary, and aborts where it lacks a gradient.

Source: the tape of reverse-mode differentiation, Griewank & Walther, Evaluating Derivatives, chapter 3.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.backends.llama_cpp.gradients.graph import Node, Route
from edge.backends.llama_cpp.native import Array, tensor_at
from edge.backends.llama_cpp.weights import Multiplier, Threads

SMALL_ROWS = 1 << 16  # values for which other threads are not worth waking


class Lora(NamedTuple):
    """The factors of one module, and where their gradients are summed up."""

    a: Array  # (rank, in)
    b: Array  # (out, rank)
    scale: np.float32
    da: Array
    db: Array


class Operations(NamedTuple):
    """What is known of ggml's operations, by their names."""

    forward: Mapping[str, Callable[["Tape", Node], Array]]  # computes a result again
    backward: Mapping[str, Callable[["Tape", Node, Array], None]]  # adds to the operands' gradients


class Tape:
    """The results of a forward pass, as far as they are kept, and the backward pass through them.

    Args:
        nodes: The graph, read from an earlier pass.
        route: For this adapter.
        loras: By module.
        multiplier: For products with weights.
        positions: Of the tokens, (tokens,); each example's count from 0.
        operations: Of every node on the route.

    Attributes:
        pointers: Where the nodes of this pass lie.
        values: Results by node.
        lora_inputs: x @ a.T of each trained product.
        masks: What each softmax adds to its scores, by the input's address: (1, 1, tokens, tokens).
        rows: Which rows a node takes, by the input's address.
        queries: Of attention under way, by the node of its scores: (1, heads, tokens, head size).
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        route: Route,
        loras: Mapping[str, Lora],
        multiplier: Multiplier,
        positions: NDArray[np.int32],
        operations: Operations,
    ) -> None:
        self.nodes, self.route, self.loras, self.multiplier = nodes, route, loras, multiplier
        self.positions, self.num_tokens, self.operations = positions, len(positions), operations
        self.pointers: list[int] = []
        self.values: dict[int, Array] = {}
        self.lora_inputs: dict[int, Array] = {}
        self.masks: dict[int, Array] = {}
        self.rows: dict[int, NDArray[np.int32]] = {}
        self.queries: dict[int, Array] = {}
        self._attention: dict[int, list[Array]] = {}
        self._rotations: dict[tuple[object, ...], tuple[Array, Array]] = {}
        self._gradients: dict[int, Array] = {}

    def backward(self, gradient: Array) -> None:
        """Adds up the factors' gradients, from that of the last result before the head."""
        self._gradients = {self.route.last: gradient[None, None]}
        for node in reversed(self.nodes[: self.route.last + 1]):
            g = self._gradients.pop(node.index, None)
            if g is not None:
                self.operations.backward[node.op](self, node, g)
            self.values.pop(node.index, None)

    def value(self, index: int) -> Array:
        """Returns a node's result: kept, or computed again and kept until its node has been passed."""
        if index not in self.values:
            node = self.nodes[index]
            self.values[index] = self.operations.forward[node.op](self, node)
        return self.values[index]

    def operand(self, node: Node, place: int) -> Array:
        """Returns the value of one operand."""
        source = node.sources[place]
        if source is not None:
            return self.value(source)
        constant = node.constants[place]
        assert constant is not None  # find_obstacle has seen to it
        return constant

    def wants(self, node: Node, place: int) -> bool:
        """Tells whether an operand's gradient leads to a factor."""
        source = node.sources[place]
        return source is not None and self.route.has_gradient[source]

    def add(self, source: int | None, gradient: Array) -> None:
        """Adds to the gradient of a node's result, if it leads to a factor."""
        if source is None or not self.route.has_gradient[source]:
            return
        held = self._gradients.get(source)
        self._gradients[source] = gradient if held is None else held + gradient

    def add_like(self, node: Node, place: int, gradient: Array) -> None:
        """Adds as `add` does, summed over the dimensions along which the operand was repeated."""
        if not self.wants(node, place):
            return
        shape = self.shape(node.sources[place])
        repeated = tuple(axis for axis in range(4) if shape[axis] == 1 < gradient.shape[axis])
        self.add(node.sources[place], gradient.sum(repeated, keepdims=True) if repeated else gradient)

    def multiply_back(self, node: Node, g: Array) -> None:
        """Goes back through a product with a weight, and through its LoRA factors."""
        weight = node.weight
        assert weight is not None
        dy = np.ascontiguousarray(g).reshape(-1, g.shape[-1])
        dx = self.multiplier.backward(dy, weight) if self.wants(node, 1) else None
        if node.index in self.route.trained:
            lora = self.loras[node.module]
            scaled = dy @ lora.b
            scaled *= lora.scale
            x = self.operand(node, 1).reshape(-1, weight.num_in)
            lora.db[...] += lora.scale * (dy.T @ self.lora_inputs[node.index])
            lora.da[...] += scaled.T @ x
            if dx is not None:
                dx += scaled @ lora.a
        if dx is not None:
            self.add(node.sources[1], dx.reshape(self.shape(node.sources[1])))

    def shape(self, index: int | None) -> tuple[int, ...]:
        """Returns a node's dimensions, outermost first; the cache has room for more tokens than there are."""
        assert index is not None
        return tuple(tensor_at(self.pointers[index]).ne[::-1])

    def cache_shape(self, node: Node) -> tuple[int, int]:
        """Returns the size of a head and the number of heads of a view of the cache."""
        ne = tensor_at(self.pointers[node.index]).ne
        return (ne[2], ne[1]) if node.is_transposed else (ne[0], ne[1])

    @cached_property
    def examples(self) -> list[slice]:
        """Where each example lies among the tokens."""
        starts = [*np.flatnonzero(self.positions == 0).tolist(), self.num_tokens]
        return [slice(begin, end) for begin, end in pairwise(starts)]

    @property
    def threads(self) -> Threads:
        """Those that share the work."""
        return self.multiplier.threads

    def by_rows(self, function: Callable[[slice], None], x: Array) -> None:
        """Calls `function` for slices of the rows of `x` that together are all of them."""
        step = max(
            1, self.multiplier.block_values // 4 // x.shape[-1]
        )  # small enough for the processor's cache
        parts = [slice(first, first + step) for first in range(0, x.shape[-2], step)]
        self.threads.share(function, parts, is_small=x.size < SMALL_ROWS)

    def attention(self, node: Node) -> list[Array]:
        """Takes the weights by which `node` weighed values; empty unless that was computed again."""
        return self._attention.pop(node.index, [])

    def keep_attention(self, node: Node, weights: list[Array]) -> None:
        """Keeps attention weights until the gradient passes `node`."""
        self._attention[node.index] = weights

    def mask(self, node: Node) -> Array:
        """Returns what a softmax adds to its scores: (1, 1, tokens, tokens)."""
        return self.masks[tensor_at(self.pointers[node.index]).src[1]]

    def rows_of(self, node: Node) -> NDArray[np.int32]:
        """Returns which rows a node takes."""
        return self.rows[tensor_at(self.pointers[node.index]).src[1]]

    def rotation(self, node: Node) -> tuple[Array, Array]:
        """Returns cosines and sines of rotary embeddings, each (tokens, 1, half the rotated dimensions)."""
        factors = node.constants[2] if len(node.constants) > 2 else None
        key = (*node.integers[1:11], id(factors))
        if key not in self._rotations:
            half, (base, scale), magnitude = node.integers[1] // 2, node.floats[5:7], node.floats[8]
            angles = base ** (-np.arange(half) / half) * scale
            if factors is not None:
                angles = angles / factors.ravel()
            turned = self.positions[:, None, None] * angles
            self._rotations[key] = (
                (np.cos(turned) * magnitude).astype(np.float32),
                (np.sin(turned) * magnitude).astype(np.float32),
            )
        return self._rotations[key]
