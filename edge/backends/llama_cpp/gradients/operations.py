"""ggml's operations in numpy: their gradients, and those results that are cheaper computed again than kept.

Arrays have four dimensions, outermost first, which are ggml's in reverse order.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from edge.backends.llama_cpp.gradients.attention import back_through_attention, weigh_values
from edge.backends.llama_cpp.gradients.graph import VIEWS, Node
from edge.backends.llama_cpp.gradients.tape import Operations, Tape
from edge.backends.llama_cpp.native import Array, tensor_at

NORMAL, NEOX = 0, 2  # modes of ROPE: pairs side by side, or half a head apart
_ONE, _HALF = np.float32(1), np.float32(0.5)
_GELU_SCALE, _GELU_CUBE = np.float32(0.7978845608028654), np.float32(0.044715)


def find_obstacle(node: Node) -> str:
    """Names what of this node stands in the gradients' way; empty if nothing."""
    if node.op not in BACKWARD and node.op != "SOFT_MAX":
        return node.op
    if node.op == "MUL_MAT" and not node.weight and not node.feeds_soft_max and not node.takes_soft_max:
        return "MUL_MAT outside attention"
    if node.op in ("GLU", "UNARY") and node.kind.removesuffix("GLU") not in ACTIVATIONS:
        return node.kind
    if node.op == "GLU" and len(node.sources) == 1 and node.integers[1]:
        return f"{node.kind} with swapped halves"
    if node.op == "SOFT_MAX" and (node.floats[1] or len(node.sources) != 2):
        return "SOFT_MAX with ALiBi, with sinks or without a mask"
    if node.op == "ROPE" and (node.integers[2] not in (NORMAL, NEOX) or node.floats[7]):
        return "ROPE with YaRN or with several positions"
    operands = zip(node.sources, node.constants, strict=True)
    if node.op in ("ADD", "MUL") and any(source is None and value is None for source, value in operands):
        return f"{node.op} of an input"
    return ""


def needed_operands(node: Node, has_gradient: Sequence[bool], is_trained: bool) -> Iterator[int]:
    """Yields which operands' values the backward pass of `node` needs."""
    behind = [source is not None and has_gradient[source] for source in node.sources]
    if node.op in ("RMS_NORM", "NORM", "UNARY"):
        yield 0
    elif node.op == "GLU":
        yield from range(len(node.sources))
    elif node.op == "MUL_MAT" and node.weight:
        yield from [1] * is_trained
    elif node.op == "MUL_MAT":
        yield from (0, 1)
    elif node.op == "MUL":
        yield from (1 - place for place in (0, 1) if behind[place])


# What a result is, from its operands.


def _result_scale(tape: Tape, node: Node) -> Array:
    return tape.operand(node, 0) * np.float32(node.floats[0]) + np.float32(node.floats[1])


def _result_rms_norm(tape: Tape, node: Node) -> Array:
    x = tape.operand(node, 0)
    return x * _inverse_rms(x, node.floats[0])


def _result_norm(tape: Tape, node: Node) -> Array:
    x = tape.operand(node, 0)
    centred: Array = x - x.mean(-1, keepdims=True)
    return centred * _inverse_rms(centred, node.floats[0])


def _result_glu(tape: Tape, node: Node) -> Array:
    gate, up = _halves(tape, node)
    out = np.empty(up.shape, np.float32)

    def fill(rows: slice) -> None:
        np.multiply(_activation(node)(gate[..., rows, :])[0], up[..., rows, :], out=out[..., rows, :])

    tape.by_rows(fill, out)
    return out


# What an operand's gradient is, from the result's.


def _back_view(tape: Tape, node: Node, g: Array) -> None:
    source = node.sources[0]
    assert source is not None
    shape = tape.shape(source)
    if node.op == "CACHE":
        turned = g[0].transpose(2, 1, 0) if node.is_transposed else g[0]
        tape.add(source, np.ascontiguousarray(turned).reshape(shape))
    elif node.op in ("PERMUTE", "TRANSPOSE"):
        tape.add(source, g.transpose(np.argsort(_axes(node))))
    elif node.op == "VIEW" and g.size != np.prod(shape):
        whole = np.zeros(shape, np.float32)
        _strided(tape, node, whole)[...] = g
        tape.add(source, whole)
    else:
        tape.add(source, np.ascontiguousarray(g).reshape(shape))


def _back_add(tape: Tape, node: Node, g: Array) -> None:
    for place in (0, 1):
        tape.add_like(node, place, g)


def _back_mul(tape: Tape, node: Node, g: Array) -> None:
    for place in (0, 1):
        if tape.wants(node, place):
            tape.add_like(node, place, g * tape.operand(node, 1 - place))


def _back_rms_norm(tape: Tape, node: Node, g: Array) -> None:
    x = tape.operand(node, 0)
    tape.add(node.sources[0], _norm_gradient(x, g, _inverse_rms(x, node.floats[0])))


def _back_norm(tape: Tape, node: Node, g: Array) -> None:
    x = tape.operand(node, 0)
    centred: Array = x - x.mean(-1, keepdims=True)
    dx = _norm_gradient(centred, g, _inverse_rms(centred, node.floats[0]))
    tape.add(node.sources[0], dx - dx.mean(-1, keepdims=True))


def _back_glu(tape: Tape, node: Node, g: Array) -> None:
    gate, up = _halves(tape, node)
    d_gate, d_up = np.empty(up.shape, np.float32), np.empty(up.shape, np.float32)

    def fill(rows: slice) -> None:
        value, slope = _activation(node)(gate[..., rows, :])
        slope *= up[..., rows, :]
        np.multiply(slope, g[..., rows, :], out=d_gate[..., rows, :])
        np.multiply(value, g[..., rows, :], out=d_up[..., rows, :])

    tape.by_rows(fill, up)
    if len(node.sources) == 2:
        tape.add(node.sources[0], d_gate)
        tape.add(node.sources[1], d_up)
    else:
        tape.add(node.sources[0], np.concatenate([d_gate, d_up], -1))


def _back_mul_mat(tape: Tape, node: Node, g: Array) -> None:
    if node.weight:
        tape.multiply_back(node, g)
    else:
        back_through_attention(tape, node, g)


def _back_rope(tape: Tape, node: Node, g: Array) -> None:
    cos, sin = tape.rotation(node)
    size = cos.shape[-1]
    out = g.copy()
    if node.integers[2] == NEOX:
        left, right = slice(0, size), slice(size, 2 * size)
    else:
        left, right = slice(0, 2 * size, 2), slice(1, 2 * size, 2)
    x, y = g[..., left], g[..., right]
    out[..., left] = x * cos + y * sin
    out[..., right] = y * cos - x * sin
    tape.add(node.sources[0], out)


def _back_get_rows(tape: Tape, node: Node, g: Array) -> None:
    whole = np.zeros(tape.shape(node.sources[0]), np.float32)
    whole[0, 0, tape.rows_of(node)] = g[0, 0]
    tape.add(node.sources[0], whole)


# Activations: value and slope.


def _silu(x: Array) -> tuple[Array, Array]:
    sigmoid = _sigmoid_of(x)
    value = x * sigmoid
    return value, sigmoid * (_ONE - value) + value


def _gelu(x: Array) -> tuple[Array, Array]:
    square = x * x
    bend: Array = np.tanh(_GELU_SCALE * x * (_ONE + _GELU_CUBE * square))
    inner = _GELU_SCALE * (_ONE + 3 * _GELU_CUBE * square)
    slope: Array = _HALF * (_ONE + bend) + _HALF * x * (_ONE - bend * bend) * inner
    return _HALF * x * (_ONE + bend), slope


def _relu(x: Array) -> tuple[Array, Array]:
    return np.maximum(x, 0), (x > 0).astype(np.float32)


def _sigmoid_of(x: Array) -> Array:
    value = np.negative(x)
    with np.errstate(over="ignore"):  # exp(-x) of a very negative x is infinite, and 1 / (1 + inf) is right
        np.exp(value, out=value)
    value += _ONE
    return np.reciprocal(value, out=value)


# Shared by the above.


def _inverse_rms(x: Array, epsilon: float) -> Array:
    square = np.einsum("...i,...i->...", x, x)[..., None]
    inverse: Array = _ONE / np.sqrt(square / np.float32(x.shape[-1]) + np.float32(epsilon))
    return inverse


def _norm_gradient(x: Array, g: Array, inverse: Array) -> Array:
    inner = np.einsum("...i,...i->...", g, x)[..., None]
    inner *= inverse * inverse / np.float32(x.shape[-1])
    dx: Array = g - x * inner
    dx *= inverse
    return dx


def _activation(node: Node) -> Callable[[Array], tuple[Array, Array]]:
    return ACTIVATIONS[node.kind.removesuffix("GLU")]


def _halves(tape: Tape, node: Node) -> tuple[Array, Array]:
    if len(node.sources) == 2:
        return tape.operand(node, 0), tape.operand(node, 1)
    gate, up = np.split(tape.operand(node, 0), 2, -1)
    return gate, up


def _look(tape: Tape, node: Node, x: Array) -> Array:
    if node.op == "CACHE":
        size, heads = tape.cache_shape(node)
        turned = x.reshape(1, -1, heads, size)
        return turned.transpose(0, 3, 2, 1) if node.is_transposed else turned
    if node.op in ("PERMUTE", "TRANSPOSE"):
        return x.transpose(_axes(node))
    shape = tape.shape(node.index)
    if node.op == "VIEW" and x.size != np.prod(shape):
        return _strided(tape, node, np.ascontiguousarray(x))
    return np.ascontiguousarray(x).reshape(shape)


def _axes(node: Node) -> tuple[int, ...]:
    places = (1, 0, 2, 3) if node.op == "TRANSPOSE" else node.integers[:4]
    source_of = {place: dimension for dimension, place in enumerate(places)}
    return tuple(3 - source_of[3 - axis] for axis in range(4))


def _strided(tape: Tape, node: Node, x: Array) -> Array:
    # The offset is the operation's first parameter, 64 bits wide.
    offset = node.integers[0] & 0xFFFFFFFF | node.integers[1] << 32
    strides = tuple(tensor_at(tape.pointers[node.index]).nb[::-1])
    return np.ndarray(tape.shape(node.index), np.float32, x.data, offset, strides)


ACTIVATIONS: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "SILU": _silu, "SWI": _silu, "GELU": _gelu, "GE": _gelu, "RELU": _relu, "RE": _relu,
}  # fmt: skip
FORWARD: dict[str, Callable[[Tape, Node], Array]] = {
    **dict.fromkeys(VIEWS, lambda tape, node: _look(tape, node, tape.operand(node, 0))),
    "ADD": lambda tape, node: tape.operand(node, 0) + tape.operand(node, 1),
    "MUL": lambda tape, node: tape.operand(node, 0) * tape.operand(node, 1),
    "SCALE": _result_scale,
    "RMS_NORM": _result_rms_norm,
    "NORM": _result_norm,
    "UNARY": lambda tape, node: ACTIVATIONS[node.kind](tape.operand(node, 0))[0],
    "GLU": _result_glu,
    "MUL_MAT": weigh_values,
}
BACKWARD: dict[str, Callable[[Tape, Node, Array], None]] = {
    **dict.fromkeys(VIEWS, _back_view),
    "ADD": _back_add,
    "MUL": _back_mul,
    "SCALE": lambda tape, node, g: tape.add(node.sources[0], g * np.float32(node.floats[0])),
    "RMS_NORM": _back_rms_norm,
    "NORM": _back_norm,
    "UNARY": lambda tape, node, g: tape.add(
        node.sources[0], g * ACTIVATIONS[node.kind](tape.operand(node, 0))[1]
    ),
    "GLU": _back_glu,
    "MUL_MAT": _back_mul_mat,
    "ROPE": _back_rope,
    "GET_ROWS": _back_get_rows,
}
OPERATIONS = Operations(FORWARD, BACKWARD)
