"""One forward pass through llama.cpp's graph, with the adapter added on the way.

llama.cpp computes; after each product with a weight that carries LoRA, scale * x @ a.T @ b.T is added to its
result in place, and what the backward pass needs is copied before the graph's allocator reuses the memory.
"""

import numpy as np
from numpy.typing import NDArray

from edge.backends.llama_cpp.context import Context
from edge.backends.llama_cpp.gradients.attention import attend_in_graph
from edge.backends.llama_cpp.gradients.graph import Node
from edge.backends.llama_cpp.gradients.tape import Tape
from edge.backends.llama_cpp.native import (
    NO_OPERATION,
    Array,
    Tensor,
    array_of,
    integers_of,
    tensor_at,
)


class Forward:
    """A forward pass.

    Args:
        tape: Takes what the pass leaves.
        keeps: Whether a backward pass will follow.
    """

    def __init__(self, tape: Tape, *, keeps: bool) -> None:
        self.tape, self.route, self.keeps = tape, tape.route, keeps
        self._taken_over: frozenset[int] = frozenset()
        self._silenced: list[tuple[Tensor, int]] = []

    def run(
        self,
        context: Context,
        tokens: NDArray[np.int32],
        sequences: NDArray[np.int32],
        is_output: NDArray[np.bool_],
    ) -> Array:
        """Runs the pass up to the head; see `Context.decode`.

        Returns:
            What the head would be applied to: (outputs, hidden size).
        """
        context.reserve(int(is_output.sum()))
        context.clear()
        context.hook = self._hook
        self._taken_over = self.route.taken_over
        try:
            context.decode(tokens, self.tape.positions, sequences, is_output, stop_before=self.route.last + 1)
        finally:
            for tensor, op in self._silenced:  # the graph may be used again
                tensor.op = op
            self._silenced.clear()
        hidden: Array = self.tape.values[self.route.last][0, 0]
        return hidden

    def logits(self, context: Context, tokens: NDArray[np.int32]) -> Array:
        """Runs a pass over the next tokens of sequence 0; returns the last one's logits: (vocabulary,)."""
        context.hook = self._hook
        zeros, is_output = np.zeros(len(tokens), np.int32), np.arange(1, len(tokens) + 1) == len(tokens)
        context.decode(tokens, self.tape.positions, zeros, is_output)
        last: Array = context.logits(1)[0]
        return last

    def _hook(self, pointer: int, is_asked: bool) -> bool:
        if is_asked:
            index = len(self.tape.pointers)
            self.tape.pointers.append(pointer)
            if index in self._taken_over:
                return self._silence(self.tape.nodes[index], pointer)
            if self.keeps and self.route.takes_input[index]:
                self._keep_input(self.tape.nodes[index], pointer)
            return self.route.is_changed[index] or (self.keeps and self.route.is_kept[index])
        index = len(self.tape.pointers) - 1
        tensor = tensor_at(pointer)
        result = array_of(tensor)
        if index in self._taken_over and self.tape.nodes[index].feeds_soft_max:
            # Later nodes may be given their memory.
            self.tape.queries[index] = array_of(tensor_at(tensor.src[1])).copy()
        elif index in self._taken_over:
            attend_in_graph(self.tape, self.tape.nodes[index], result)
        if index in self.route.trained:
            self.add_lora(self.tape.nodes[index], result, array_of(tensor_at(tensor.src[1])))
        if index == self.route.last or (self.keeps and self.route.is_kept[index]):
            self.tape.values[index] = result.copy()
        return True

    def _silence(self, node: Node, pointer: int) -> bool:
        tensor = tensor_at(pointer)
        self._silenced.append((tensor, tensor.op))
        tensor.op = NO_OPERATION
        if node.op == "SOFT_MAX":
            self._keep_input(node, pointer)
        return node.op == "MUL_MAT"

    def add_lora(self, node: Node, result: Array, x: Array) -> None:
        """Adds a trained product's LoRA to its result for `x`."""
        lora = self.tape.loras[node.module]
        hidden = x.reshape(-1, x.shape[-1]) @ lora.a.T
        rows = result.reshape(-1, result.shape[-1])
        rows += (hidden * lora.scale) @ lora.b.T
        self.tape.lora_inputs[node.index] = hidden

    def _keep_input(self, node: Node, pointer: int) -> None:
        # Inputs are recycled while the graph is computed.
        source = tensor_at(pointer).src[1]
        if node.op == "SOFT_MAX" and source not in self.tape.masks:
            count = self.tape.num_tokens
            self.tape.masks[source] = array_of(tensor_at(source))[:, :, :count, :count].copy()
        elif node.op == "GET_ROWS" and source not in self.tape.rows:
            self.tape.rows[source] = integers_of(tensor_at(source))
