"""Attention and its gradient, example by example and some heads at a time.

Examples that share a pass do not see each other, so what llama.cpp would mask away is not computed here at
all, and scores are never whole. With 16 short examples in a step a small model takes 0.65 of the time: heads
of 8 or 16 values are what ggml is slowest at.

Several heads of queries may share one of keys and values (Ainslie et al., arXiv 2305.13245): they lie end to
end as the rows of one product.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edge.backends.llama_cpp.gradients.graph import Node
from edge.backends.llama_cpp.gradients.tape import Tape
from edge.backends.llama_cpp.native import Array, array_of, tensor_at

SMALL_SCORES = 1 << 17  # for fewer, other threads are not worth waking


class Piece(NamedTuple):
    """Some heads of one example."""

    tokens: slice
    keys: slice  # heads of keys and values
    queries: slice  # heads of queries that share them


class Operands(NamedTuple):
    """What attention is computed from, each (1, heads, tokens, head size); values are transposed."""

    keys: Array
    queries: Array
    values: Array
    mask: Array  # (1, 1, tokens, tokens)
    scale: np.float32

    def pieces(self, tape: Tape) -> list[Piece]:
        """Cuts the work into pieces, enough to give every thread some."""
        heads, shared = self.keys.shape[1], self.queries.shape[1] // self.keys.shape[1]
        is_whole = len(tape.examples) >= tape.threads.count or self.is_small
        parts = [range(heads)] if is_whole else tape.threads.split(heads)
        return [
            Piece(tokens, slice(part.start, part.stop), slice(part.start * shared, part.stop * shared))
            for tokens in tape.examples
            for part in parts
        ]

    @property
    def is_small(self) -> bool:
        """Whether one thread is enough."""
        _, heads, tokens, _ = self.queries.shape
        return bool(heads * tokens * tokens < SMALL_SCORES)


def weigh_values(tape: Tape, node: Node) -> Array:
    """Computes a product of attention weights with values: (1, heads, tokens, head size)."""
    held = _operands(tape, node)
    out = np.empty((*held.queries.shape[:-1], held.values.shape[-2]), np.float32)
    tape.keep_attention(node, attend(tape, held, out))
    return out


def attend(tape: Tape, held: Operands, out: Array) -> list[Array]:
    """Fills `out`, (1, heads, tokens, head size), and gives the weights of each piece."""

    def weigh(piece: Piece) -> Array:
        weights = _weights(held, piece)
        values = held.values[:, piece.keys, :, piece.tokens]
        product = _gathered(weights, values) @ values.swapaxes(-1, -2)
        out[:, piece.queries, piece.tokens] = product.reshape(*weights.shape[:-1], -1)
        return weights

    return tape.threads.share(weigh, held.pieces(tape), is_small=held.is_small)


def taken_over(nodes: Sequence[Node]) -> frozenset[int]:
    """Finds scores, softmax and weighing that are attention as it is computed here."""
    found: set[int] = set()
    for node in nodes:
        if node.takes_soft_max:
            soft_max, scores = _behind(nodes, node)
            is_plain = len(soft_max.sources) == 2 and not soft_max.floats[1]  # neither sinks nor ALiBi
            if is_plain and scores.op == "MUL_MAT" and not scores.weight:
                found |= {node.index, soft_max.index, scores.index}
    return frozenset(found)


def attend_in_graph(tape: Tape, node: Node, out: Array) -> None:
    """Fills `out` from the cache, which has room for more tokens, while the graph is computed."""
    soft_max, scores = _behind(tape.nodes, node)
    count = tape.num_tokens
    keys, values = (
        array_of(tensor_at(tensor_at(tape.pointers[index]).src[0])) for index in (scores.index, node.index)
    )
    held = Operands(
        keys=keys[:, :, :count],
        queries=tape.queries.pop(scores.index),
        values=values[..., :count],
        mask=tape.mask(soft_max),
        scale=np.float32(soft_max.floats[0]),
    )
    attend(tape, held, out)


def back_through_attention(tape: Tape, node: Node, g: Array) -> None:
    """Adds to the gradients of keys, queries and values, from that of `weigh_values`."""
    held, kept = _operands(tape, node), tape.attention(node)
    d_keys, d_queries, d_values = (np.empty(x.shape, np.float32) for x in held[:3])
    pieces = held.pieces(tape)

    def back(number: int) -> None:
        piece = pieces[number]
        keys, queries = held.keys[:, piece.keys, piece.tokens], held.queries[:, piece.queries, piece.tokens]
        values = held.values[:, piece.keys, :, piece.tokens]
        weights = kept[number] if kept else _weights(held, piece)
        dy = _gathered(g[:, piece.queries, piece.tokens], values)
        d_values[:, piece.keys, :, piece.tokens] = dy.swapaxes(-1, -2) @ _gathered(weights, values)
        d_scores = (dy @ values).reshape(weights.shape)
        d_scores -= np.einsum("...i,...i->...", d_scores, weights)[..., None]
        d_scores *= weights
        d_scores *= held.scale
        rows = _gathered(d_scores, keys)
        d_queries[:, piece.queries, piece.tokens] = (rows @ keys).reshape(queries.shape)
        d_keys[:, piece.keys, piece.tokens] = rows.swapaxes(-1, -2) @ _gathered(queries, keys)

    tape.threads.share(back, range(len(pieces)), is_small=held.is_small)
    _, scores = _behind(tape.nodes, node)
    for source, gradient in zip(
        (*scores.sources[:2], node.sources[0]), (d_keys, d_queries, d_values), strict=True
    ):
        tape.add(source, gradient)


def _weights(held: Operands, piece: Piece) -> Array:
    keys, queries = held.keys[:, piece.keys, piece.tokens], held.queries[:, piece.queries, piece.tokens]
    weights = (_gathered(queries, keys) @ keys.swapaxes(-1, -2)).reshape(*queries.shape[:-1], -1)
    weights *= held.scale
    weights += held.mask[:, :, piece.tokens, piece.tokens]
    weights -= weights.max(-1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(-1, keepdims=True)
    return weights


def _operands(tape: Tape, node: Node) -> Operands:
    soft_max, scores = _behind(tape.nodes, node)
    return Operands(
        keys=tape.operand(scores, 0),
        queries=tape.operand(scores, 1),
        values=tape.operand(node, 0),
        mask=tape.mask(soft_max),
        scale=np.float32(soft_max.floats[0]),
    )


def _behind(nodes: Sequence[Node], node: Node) -> tuple[Node, Node]:
    """Finds the softmax and the scores behind a product of attention weights with values."""
    assert node.sources[1] is not None
    soft_max = nodes[node.sources[1]]
    assert soft_max.sources[0] is not None
    return soft_max, nodes[soft_max.sources[0]]


def _gathered(x: Array, like: Array) -> Array:
    """Joins heads of `x` that share one of `like` end to end: as many heads as `like`."""
    return np.ascontiguousarray(x).reshape(*like.shape[:2], -1, x.shape[-1])
