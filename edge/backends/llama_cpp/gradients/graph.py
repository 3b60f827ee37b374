"""llama.cpp's forward graph as a list of nodes, and the record of what a backward pass does at each.

The nodes are read once from a graph that was computed; later graphs of the same model differ in the number
of tokens only. The key-value cache is looked through: it is cleared before each batch, so what a node reads
from it is what another node has just written.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edge.backends.llama_cpp.context import Context
from edge.backends.llama_cpp.native import (
    F16,
    F32,
    Array,
    Tensor,
    array_of,
    describe,
    open_library,
    tensor_at,
    to_float,
)
from edge.backends.llama_cpp.weights import Weight
from edge.errors import BackendError

VIEWS = frozenset({"RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE", "CONT", "CACHE"})


@dataclass(slots=True, eq=False)
class Node:
    """One operation of the graph.

    Attributes:
        op: ggml's name; `CACHE` for a view of the key-value cache.
        kind: Which unary or gated operation.
        sources: Index of the node that makes each operand; None for weights and inputs.
        pointers: Addresses of the operands when the graph was read.
        constants: Float32 values of operands that are one-dimensional weights.
        weight: The matrix that this product multiplies by.
        module: Name of the weight in the file, without `.weight`.
        integers, floats: The operation's parameters, both readings of the same 64 bytes.
        is_transposed: Of a view of the cache: channels before tokens.
        feeds_soft_max: Of a product: it makes attention scores.
        takes_soft_max: Of a product: it weighs values by attention.
    """

    index: int
    op: str
    kind: str
    name: str
    sources: list[int | None]
    pointers: list[int]
    constants: list[Array | None]
    weight: Weight | None
    module: str
    integers: tuple[int, ...]
    floats: tuple[float, ...]
    is_transposed: bool = False
    feeds_soft_max: bool = False
    takes_soft_max: bool = False


class Route(NamedTuple):
    """What to do at each node for one adapter: the gradients' way back."""

    trained: frozenset[int]  # products with a weight that carries LoRA
    head: Weight
    last: int  # the node before the head
    has_gradient: tuple[bool, ...]
    is_changed: tuple[bool, ...]  # LoRA is added to these results; and the last one is looked at
    is_kept: tuple[bool, ...]  # results that the backward pass needs
    taken_over: frozenset[int]  # attention, which a whole pass computes itself
    takes_input: tuple[bool, ...]  # of a mask, or of the places of the outputs, that it needs


def read_graph(pointers: Sequence[int]) -> list[Node]:
    """Reads the nodes at `pointers`, in order of computation, while llama.cpp still holds them."""
    index = {pointer: number for number, pointer in enumerate(pointers)}
    nodes = [_read_node(number, pointer, index) for number, pointer in enumerate(pointers)]
    _look_through_cache(nodes, [tensor_at(pointer) for pointer in pointers])
    for node in nodes:
        if node.op == "SOFT_MAX" and node.sources[0] is not None:
            nodes[node.sources[0]].feeds_soft_max = True
    for node in nodes:
        second = node.sources[1] if len(node.sources) > 1 else None
        node.takes_soft_max = second is not None and nodes[second].op == "SOFT_MAX"
    return nodes


def record_graph(context: Context, *, everywhere: bool) -> list[Node]:
    """Reads the nodes where logits are wanted everywhere, or not: alike for any number of tokens.

    Forgets all tokens.
    """
    pointers: list[int] = []

    def record(pointer: int, is_asked: bool) -> bool:
        pointers.append(pointer)
        return False

    context.clear()
    context.hook = record
    two, none = np.arange(2, dtype=np.int32), np.zeros(2, np.int32)
    context.decode(two, two, none, np.array([everywhere, True]))
    nodes = read_graph(pointers)
    context.clear()
    return nodes


def _read_node(number: int, pointer: int, index: Mapping[int, int]) -> Node:
    tensor = tensor_at(pointer)
    op = open_library().ops.get(tensor.op, f"operation {tensor.op}")
    operands = [source for source in tensor.src if source]
    sources = [index.get(source) for source in operands]
    weight, module = None, ""
    if op == "MUL_MAT" and sources[0] is None:
        matrix = tensor_at(operands[0])
        weight, module = _weight(matrix), matrix.name.decode().removesuffix(".weight")
    constants = [
        None if source is not None else _constant(tensor_at(operand))
        for source, operand in zip(sources, operands, strict=True)
    ]
    return Node(
        index=number,
        op=op,
        kind=describe(pointer) if op in ("UNARY", "GLU") else "",
        name=tensor.name.decode(),
        sources=sources,
        pointers=operands,
        constants=constants,
        weight=weight,
        module=module,
        integers=tuple(tensor.op_params),
        floats=tuple((ctypes.c_float * 16).from_buffer_copy(tensor.op_params)),
    )


def _weight(tensor: Tensor) -> Weight:
    return Weight(tensor.type, tensor.data, tensor.nb[1], tensor.ne[0], tensor.ne[1])


def _constant(tensor: Tensor) -> Array | None:
    """Copies norm weights, biases, frequency factors, which are small; inputs have no values yet."""
    is_vector = tensor.ne[1] * tensor.ne[2] * tensor.ne[3] == 1
    if not is_vector or not tensor.name.endswith((b".weight", b".bias", b".scale")):
        return None
    if tensor.type == F32:
        return array_of(tensor).copy()
    if tensor.type != F16:
        return None
    values = np.empty(tensor.ne[0], np.float32)
    to_float(tensor.type)(tensor.data, values.ctypes.data, values.size)
    return values.reshape(1, 1, 1, -1)


def _look_through_cache(nodes: list[Node], tensors: Sequence[Tensor]) -> None:
    """Turns every view of the cache into a `CACHE` node whose source is what was written there."""
    written: dict[int, tuple[int, bool]] = {}
    for node, tensor in zip(nodes, tensors, strict=True):
        if node.op == "SET_ROWS":
            root = tensor.view_src or node.pointers[2]
            source = node.sources[0]
            if source is None or tensor_at(root).type != F32:
                raise BackendError(f"backend llama_cpp: node {node.name} fills the cache in an unknown way")
            written[root] = (source, tensor_at(node.pointers[0]).ne[0] == 1)
    for node, tensor in zip(nodes, tensors, strict=True):
        if node.op != "VIEW" or node.sources[0] is not None or tensor.view_src not in written:
            continue
        node.sources[0], node.is_transposed = written[tensor.view_src]
        node.op = "CACHE"
