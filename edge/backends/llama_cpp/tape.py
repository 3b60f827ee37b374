"""One pass through llama.cpp's graph: the adapter added on the way, then the gradients on the way back.

Forward, llama.cpp computes; after each product with a weight that carries LoRA, scale * x @ a.T @ b.T is
added to its result in place, and what the backward pass needs is copied before the graph's allocator reuses
the memory. Backward is numpy. So one mechanism serves every quantisation, every rank, and every architecture
whose operations stand in `operations.py`, without an optimiser graph of ggml's: that one dequantises a weight
again for each token, holds three arrays of tokens x vocabulary, and aborts where it lacks a gradient.

Source: the tape of reverse-mode differentiation, Griewank & Walther, Evaluating Derivatives, chapter 3.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.backends.llama_cpp.attention import attend_in_graph
from edge.backends.llama_cpp.graph import Node, Plan
from edge.backends.llama_cpp.native import (
    NO_OPERATION,
    Array,
    Context,
    Tensor,
    array_of,
    integers_of,
    tensor_at,
)
from edge.backends.llama_cpp.operations import BACKWARD, FORWARD
from edge.backends.llama_cpp.weights import BLOCK_VALUES, Multiplier, Threads

SMALL_ROWS = 1 << 16  # values for which other threads are not worth waking


class Lora(NamedTuple):
    """The factors of one module, and where their gradients are summed up."""

    a: Array  # (rank, in)
    b: Array  # (out, rank)
    scale: np.float32
    da: Array
    db: Array


class Tape:
    """A forward pass with its adapter, and the backward pass through it.

    Args:
        nodes: The graph, read from an earlier pass.
        plan: For this adapter.
        loras: By module.
        multiplier: For products with weights.
        positions: Of the tokens, (tokens,); each example's count from 0.
        keeps: Whether a backward pass will follow.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        plan: Plan,
        loras: Mapping[str, Lora],
        multiplier: Multiplier,
        positions: NDArray[np.int32],
        *,
        keeps: bool,
    ) -> None:
        self.nodes, self.plan, self.loras, self.multiplier = nodes, plan, loras, multiplier
        self.positions, self.num_tokens = positions, len(positions)
        self.pointers: list[int] = []
        self._keeps = keeps
        self._values: dict[int, Array] = {}
        self._attention: dict[int, list[Array]] = {}
        self._hidden: dict[int, Array] = {}  # x @ a.T of each trained product
        self._masks: dict[int, Array] = {}
        self._rows: dict[int, NDArray[np.int32]] = {}
        self._rotations: dict[tuple[object, ...], tuple[Array, Array]] = {}
        self._gradients: dict[int, Array] = {}
        self._taken_over: frozenset[int] = frozenset()
        self._silenced: list[tuple[Tensor, int]] = []
        self._queries: dict[int, Array] = {}

    def run(
        self,
        context: Context,
        tokens: NDArray[np.int32],
        sequences: NDArray[np.int32],
        is_output: NDArray[np.bool_],
    ) -> Array:
        """The forward pass up to the head; see `Context.decode`.

        Returns:
            What the head would be applied to: (outputs, hidden size).
        """
        context.reserve(int(is_output.sum()))
        context.clear()
        context.hook = self._hook
        self._taken_over = self.plan.taken_over
        try:
            context.decode(tokens, self.positions, sequences, is_output, stop_before=self.plan.last + 1)
        finally:
            for tensor, op in self._silenced:  # the graph may be used again
                tensor.op = op
            self._silenced.clear()
        hidden: Array = self._values[self.plan.last][0, 0]
        return hidden

    def logits(self, context: Context, tokens: NDArray[np.int32]) -> Array:
        """A pass over the next tokens of sequence 0, nothing kept: the last token's logits, (vocabulary,)."""
        context.hook = self._hook
        zeros, is_output = np.zeros(len(tokens), np.int32), np.arange(1, len(tokens) + 1) == len(tokens)
        context.decode(tokens, self.positions, zeros, is_output)
        last: Array = context.logits(1)[0]
        return last

    def backward(self, gradient: Array) -> None:
        """Adds the factors' gradients up, from that of what `run` gave."""
        self._gradients = {self.plan.last: gradient[None, None]}
        for node in reversed(self.nodes[: self.plan.last + 1]):
            g = self._gradients.pop(node.index, None)
            if g is not None:
                BACKWARD[node.op](self, node, g)
            self._values.pop(node.index, None)

    def value(self, index: int) -> Array:
        """A node's result: kept, or computed again and kept from now until its node has been passed."""
        if index not in self._values:
            node = self.nodes[index]
            self._values[index] = FORWARD[node.op](self, node)
        return self._values[index]

    def operand(self, node: Node, place: int) -> Array:
        """The value of one operand."""
        source = node.sources[place]
        if source is not None:
            return self.value(source)
        constant = node.constants[place]
        assert constant is not None  # find_obstacle has seen to it
        return constant

    def wants(self, node: Node, place: int) -> bool:
        """Whether an operand's gradient leads to a factor."""
        source = node.sources[place]
        return source is not None and self.plan.has_gradient[source]

    def add(self, source: int | None, gradient: Array) -> None:
        """Adds to the gradient of a node's result, if it leads to a factor."""
        if source is None or not self.plan.has_gradient[source]:
            return
        held = self._gradients.get(source)
        self._gradients[source] = gradient if held is None else held + gradient

    def add_like(self, node: Node, place: int, gradient: Array) -> None:
        """As `add`, summed over the dimensions along which the operand was repeated."""
        if not self.wants(node, place):
            return
        shape = self.shape(node.sources[place])
        repeated = tuple(axis for axis in range(4) if shape[axis] == 1 < gradient.shape[axis])
        self.add(node.sources[place], gradient.sum(repeated, keepdims=True) if repeated else gradient)

    def multiply_back(self, node: Node, g: Array) -> None:
        """Through a product with a weight, and through its LoRA factors."""
        weight = node.weight
        assert weight is not None
        dy = np.ascontiguousarray(g).reshape(-1, g.shape[-1])
        dx = self.multiplier.backward(dy, weight) if self.wants(node, 1) else None
        if node.index in self.plan.trained:
            lora = self.loras[node.module]
            scaled = dy @ lora.b
            scaled *= lora.scale
            x = self.operand(node, 1).reshape(-1, weight.num_in)
            lora.db[...] += lora.scale * (dy.T @ self._hidden[node.index])
            lora.da[...] += scaled.T @ x
            if dx is not None:
                dx += scaled @ lora.a
        if dx is not None:
            self.add(node.sources[1], dx.reshape(self.shape(node.sources[1])))

    def shape(self, index: int | None) -> tuple[int, ...]:
        """A node's dimensions, outermost first; the cache's have room for more tokens than there are."""
        assert index is not None
        return tuple(tensor_at(self.pointers[index]).ne[::-1])

    def cache_shape(self, node: Node) -> tuple[int, int]:
        """Of a view of the cache: size of a head, and heads."""
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
        step = max(1, BLOCK_VALUES // 4 // x.shape[-1])  # small enough for the processor's cache
        parts = [slice(first, first + step) for first in range(0, x.shape[-2], step)]
        self.threads.share(function, parts, is_small=x.size < SMALL_ROWS)

    def attention(self, node: Node) -> list[Array]:
        """Attention weights by which `node` weighed values; empty unless that was computed again."""
        return self._attention.pop(node.index, [])

    def keep_attention(self, node: Node, weights: list[Array]) -> None:
        """Until the gradient passes `node`."""
        self._attention[node.index] = weights

    def queries(self, scores: Node) -> Array:
        """Of attention under way: (1, heads, tokens, head size)."""
        return self._queries.pop(scores.index)

    def mask(self, node: Node) -> Array:
        """What a softmax adds to its scores: (1, 1, tokens, tokens)."""
        return self._masks[tensor_at(self.pointers[node.index]).src[1]]

    def rows(self, node: Node) -> NDArray[np.int32]:
        """Which rows a node takes."""
        return self._rows[tensor_at(self.pointers[node.index]).src[1]]

    def rotation(self, node: Node) -> tuple[Array, Array]:
        """Cosines and sines of rotary embeddings, each (tokens, 1, half the rotated dimensions)."""
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

    def _hook(self, pointer: int, is_asked: bool) -> bool:
        if is_asked:
            index = len(self.pointers)
            self.pointers.append(pointer)
            if index in self._taken_over:
                return self._silence(self.nodes[index], pointer)
            if self._keeps and self.plan.takes_input[index]:
                self._keep_input(self.nodes[index], pointer)
            return self.plan.is_changed[index] or (self._keeps and self.plan.is_kept[index])
        index = len(self.pointers) - 1
        tensor = tensor_at(pointer)
        result = array_of(tensor)
        if index in self._taken_over and self.nodes[index].feeds_soft_max:
            # Later nodes may be given their memory.
            self._queries[index] = array_of(tensor_at(tensor.src[1])).copy()
        elif index in self._taken_over:
            attend_in_graph(self, self.nodes[index], result)
        if index in self.plan.trained:
            self._add_lora(self.nodes[index], result, array_of(tensor_at(tensor.src[1])))
        if index == self.plan.last or (self._keeps and self.plan.is_kept[index]):
            self._values[index] = result.copy()
        return True

    def _silence(self, node: Node, pointer: int) -> bool:
        tensor = tensor_at(pointer)
        self._silenced.append((tensor, tensor.op))
        tensor.op = NO_OPERATION
        if node.op == "SOFT_MAX":
            self._keep_input(node, pointer)
        return node.op == "MUL_MAT"

    def _add_lora(self, node: Node, result: Array, x: Array) -> None:
        lora = self.loras[node.module]
        hidden = x.reshape(-1, x.shape[-1]) @ lora.a.T
        rows = result.reshape(-1, result.shape[-1])
        rows += (hidden * lora.scale) @ lora.b.T
        self._hidden[node.index] = hidden

    def _keep_input(self, node: Node, pointer: int) -> None:
        # Inputs are recycled while the graph is computed.
        source = tensor_at(pointer).src[1]
        if node.op == "SOFT_MAX" and source not in self._masks:
            count = self.num_tokens
            self._masks[source] = array_of(tensor_at(source))[:, :, :count, :count].copy()
        elif node.op == "GET_ROWS" and source not in self._rows:
            self._rows[source] = integers_of(tensor_at(source))
