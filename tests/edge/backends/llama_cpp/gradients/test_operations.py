"""Each operation's gradient, on graphs that ggml itself makes and computes.

Every case is written down once more in float64, held against ggml's result, and differentiated by
differences. The tape is asked in its public way: operands are products with weights that carry LoRA. A
product of the identity with `w` is `w.T`, and with the identity as factor `a`, too, the gradient of factor
`b` is the operand's, transposed.
"""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="needs the llama extra")

from edge.backends.llama_cpp import native
from edge.backends.llama_cpp.gradients.forward import Forward
from edge.backends.llama_cpp.gradients.graph import read_graph
from edge.backends.llama_cpp.gradients.operations import ACTIVATIONS, BACKWARD, OPERATIONS
from edge.backends.llama_cpp.gradients.route import make_route
from edge.backends.llama_cpp.gradients.tape import Lora, Tape
from edge.backends.llama_cpp.weights import Multiplier, Threads
from edge.errors import BackendError

pytestmark = pytest.mark.llama
EXAMPLES = (5, 1, 3)  # tokens of each
TOKENS = sum(EXAMPLES)
POSITIONS = np.concatenate([np.arange(length) for length in EXAMPLES]).astype(np.int32)
HEADS, KV_HEADS, HEAD = 4, 2, 6
RANDOM = np.random.default_rng(0)
VECTOR = RANDOM.normal(1, 0.3, 8).astype(np.float32)
FREQUENCIES = np.array([1.0, 2.0, 5.0], np.float32)
ROWS = np.array([1, 4, 8], np.int32)


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


class Graph:
    """ggml's functions by name, over one pool of memory, and `native.Context`'s methods over its graph."""

    def __init__(self) -> None:
        self.base = native.open_library().ggml
        self.cpu = ctypes.CDLL(str(next(Path(self.base._name).parent.glob("*ggml-cpu.*"))))
        self.pool = ctypes.c_void_p(self.call("ggml_init", _InitParams(1 << 24, None, False)))
        self.nodes: list[int] = []

    def call(self, name: str, *arguments: Any) -> int:
        function = getattr(self.base, name)
        function.restype = ctypes.c_void_p
        return function(*arguments)

    def make(self, name: str, *arguments: Any) -> int:
        """Calls `ggml_<name>`: numbers given as int are tensors, or plain numbers where they are small."""
        given = [
            ctypes.c_void_p(value) if type(value) is int and value > 1 << 20 else value for value in arguments
        ]
        return self.call(f"ggml_{name}", self.pool, *given)

    def tensor(self, values: np.ndarray, name: str) -> int:
        kind = native.I32 if values.dtype == np.int32 else native.F32
        shape = (ctypes.c_int64 * values.ndim)(*values.shape[::-1])
        pointer = self.make("new_tensor", ctypes.c_int(kind), ctypes.c_int(values.ndim), shape)
        ctypes.memmove(
            native.tensor_at(pointer).data, np.ascontiguousarray(values).ctypes.data, values.nbytes
        )
        self.call("ggml_set_name", ctypes.c_void_p(pointer), name.encode())
        return pointer

    def reshape(self, pointer: int, shape: Sequence[int]) -> int:
        return self.make("reshape_4d", pointer, *map(ctypes.c_int64, shape[::-1]))

    def list_nodes(self, last: int) -> list[int]:
        graph = ctypes.c_void_p(self.make("new_graph"))
        self.call("ggml_build_forward_expand", graph, ctypes.c_void_p(last))
        count = ctypes.c_int(self.call("ggml_graph_n_nodes", graph) & 0xFFFFFFFF).value
        self.nodes = [self.call("ggml_graph_node", graph, ctypes.c_int(number)) for number in range(count)]
        return self.nodes

    def reserve(self, num_outputs: int) -> None: ...

    def clear(self) -> None: ...

    def decode(self, tokens: Any, positions: Any, sequences: Any, is_output: Any, stop_before: int) -> None:
        for pointer in self.nodes[:stop_before]:
            is_wanted = self.hook(pointer, True)
            graph = ctypes.c_void_p(self.make("new_graph"))
            self.call("ggml_graph_add_node", graph, ctypes.c_void_p(pointer))
            self.cpu.ggml_graph_compute_with_ctx(self.pool, graph, 1)
            if is_wanted:
                self.hook(pointer, False)


class Case(NamedTuple):
    """An operation on operands of these shapes, in ggml and in float64."""

    shapes: Sequence[tuple[int, ...]]
    build: Callable[..., int]
    compute: Callable[..., np.ndarray]
    tolerance: float = 1e-6  # of ggml's result


def _one(name: str, compute: Callable, tolerance: float = 1e-6) -> Case:
    return Case([(1, 2, 3, 8)], lambda graph, x: graph.make(name, x), compute, tolerance)


def _two(name: str, compute: Callable, tolerance: float = 1e-6) -> Case:
    shapes = [(1, 1, 4, 6), (1, 1, 4, 6)]
    return Case(shapes, lambda graph, x, y: graph.make(name, x, y), compute, tolerance)


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _fused(activation: Callable) -> Callable:
    return lambda x: activation(x[..., :4]) * x[..., 4:]


def _rope(
    mode: int, num_dims: int, *, base=100.0, stretch=1.0, magnitude=1.0, factors=None, extrapolation=0.0
) -> Case:
    def build(graph: Graph, x: int) -> int:
        places = graph.tensor(np.tile(POSITIONS, 4 if mode == 8 else 1), "positions")
        divisors = graph.tensor(factors, "rope_freqs.weight") if factors is not None else None
        numbers = [ctypes.c_float(value) for value in (base, stretch, extrapolation, magnitude, 32.0, 1.0)]
        counts = map(ctypes.c_int, (num_dims, mode, 64))
        return graph.make("rope_ext", x, places, divisors, *counts, *numbers)

    def compute(x: np.ndarray) -> np.ndarray:
        half = num_dims // 2
        angles = POSITIONS[:, None, None] * stretch * base ** (-np.arange(half) / half)
        angles = angles if factors is None else angles / factors.astype(float)
        pairs = x[..., :num_dims].reshape(*x.shape[:-1], *((2, half) if mode else (half, 2)))
        pairs = pairs if mode else pairs.swapaxes(-1, -2)
        turned = (pairs[..., 0, :] + 1j * pairs[..., 1, :]) * np.exp(1j * angles) * magnitude
        parts = np.stack([turned.real, turned.imag], -2 if mode else -1).reshape(*x.shape[:-1], num_dims)
        return np.concatenate([parts, x[..., num_dims:]], -1)

    return Case([(1, TOKENS, HEADS, HEAD)], build, compute, 1e-5)


def _permute(*axes: int) -> Case:
    # ggml says where each of its dimensions goes, numpy where each of its own comes from.
    order = [3 - axes.index(3 - axis) for axis in range(4)]
    return Case(
        [(1, 2, 3, 4)],
        lambda graph, x: graph.make("permute", x, *map(ctypes.c_int, axes)),
        lambda x: x.transpose(order),
    )


def _mask() -> np.ndarray:
    example = np.repeat(range(len(EXAMPLES)), EXAMPLES)
    sees = (example[:, None] == example) & (POSITIONS[:, None] >= POSITIONS)
    sees &= POSITIONS[:, None] - POSITIONS < 4  # a sliding window
    return np.where(sees, 0, -np.inf).astype(np.float32)


def _attention(heads: int, kv_heads: int) -> Case:
    def build(graph: Graph, q: int, k: int, v: int) -> int:
        scores = graph.make("mul_mat", k, q)
        mask = graph.tensor(_mask(), "mask")
        shares = graph.make("soft_max_ext", scores, mask, ctypes.c_float(0.4), ctypes.c_float(0.0))
        return graph.make("mul_mat", v, shares)

    def compute(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        k, v = (np.repeat(x, heads // kv_heads, 1) for x in (k, v))
        scores = 0.4 * q @ k.swapaxes(-1, -2) + _mask()
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        return shares / shares.sum(-1, keepdims=True) @ v.swapaxes(-1, -2)

    shapes = [(1, heads, TOKENS, HEAD), (1, kv_heads, TOKENS, HEAD), (1, kv_heads, HEAD, TOKENS)]
    return Case(shapes, build, compute)


def _view(graph: Graph, x: int) -> int:
    # Columns 2 to 5 of rows of 8.
    sizes = [ctypes.c_int64(size) for size in (4, 3, 2)]
    return graph.make("view_3d", x, *sizes, *map(ctypes.c_size_t, (8 * 4, 3 * 8 * 4, 2 * 4)))


CASES = {
    "RMS_NORM": Case(
        [(1, 2, 3, 8)],
        lambda graph, x: graph.make("rms_norm", x, ctypes.c_float(0.1)),
        lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1),
    ),
    "NORM": Case(
        [(1, 2, 3, 8)],
        lambda graph, x: graph.make("norm", x, ctypes.c_float(0.1)),
        lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1),
    ),
    "ADD": _two("add", lambda x, y: x + y),
    "ADD to each row": Case(
        [(1, 2, 3, 8), (1, 1, 1, 8)], lambda graph, x, y: graph.make("add", x, y), lambda x, y: x + y
    ),
    "ADD a bias": Case(
        [(1, 2, 3, 8)],
        lambda graph, x: graph.make("add", x, graph.tensor(VECTOR, "blk.0.bias")),
        lambda x: x + VECTOR,
    ),
    "ADD to itself": Case([(1, 1, 4, 6)], lambda graph, x: graph.make("add", x, x), lambda x: 2 * x),
    "MUL": _two("mul", lambda x, y: x * y),
    "MUL of each row": Case(
        [(1, 2, 3, 8), (1, 2, 1, 8)], lambda graph, x, y: graph.make("mul", x, y), lambda x, y: x * y
    ),
    "MUL by a weight": Case(
        [(1, 2, 3, 8)],
        lambda graph, x: graph.make("mul", x, graph.tensor(VECTOR, "blk.0.weight")),
        lambda x: x * VECTOR,
    ),
    "SCALE": Case(
        [(1, 2, 3, 8)],
        lambda graph, x: graph.make("scale_bias", x, ctypes.c_float(-0.7), ctypes.c_float(0.2)),
        lambda x: -0.7 * x + 0.2,
    ),
    "SILU": _one("silu", _silu),
    "GELU": _one("gelu", _gelu, 2e-3),  # a table in half precision
    "RELU": _one("relu", _relu),
    "SWIGLU": _two("swiglu_split", lambda x, y: _silu(x) * y),
    "GEGLU": _two("geglu_split", lambda x, y: _gelu(x) * y, 2e-3),
    "REGLU": _two("reglu_split", lambda x, y: _relu(x) * y),
    "SWIGLU, fused": _one("swiglu", _fused(_silu)),
    "GEGLU, fused": _one("geglu", _fused(_gelu), 2e-3),
    "REGLU, fused": _one("reglu", _fused(_relu)),
    "ROPE": _rope(0, HEAD),
    "ROPE, halves": _rope(2, HEAD),
    "ROPE of a part": _rope(0, 4),
    "ROPE of a part, halves": _rope(2, 4),
    "ROPE, stretched": _rope(2, HEAD, base=500.0, stretch=0.25, magnitude=1.3),
    "ROPE with factors": _rope(0, HEAD, factors=FREQUENCIES),
    "GET_ROWS": Case(
        [(1, 1, TOKENS, 8)],
        lambda graph, x: graph.make("get_rows", x, graph.tensor(ROWS, "rows")),
        lambda x: x[:, :, ROWS],
    ),
    "PERMUTE": _permute(0, 2, 1, 3),
    "PERMUTE, reversed": _permute(2, 1, 0, 3),
    "PERMUTE in a cycle": _permute(1, 2, 0, 3),
    "TRANSPOSE": Case(
        [(1, 2, 3, 4)], lambda graph, x: graph.make("transpose", x), lambda x: x.swapaxes(-1, -2)
    ),
    "VIEW": Case([(1, 2, 3, 8)], _view, lambda x: x[..., 2:6]),
    "attention": _attention(HEADS, HEADS),
    "attention, grouped": _attention(HEADS, KV_HEADS),
    "attention, one head of keys": _attention(HEADS, 1),
}


REFUSED = {  # what is said, and how to build it
    "SQR": lambda graph, x: graph.make("sqr", x),
    "GELU_QUICK": lambda graph, x: graph.make("gelu_quick", x),
    "SWIGLU with swapped halves": lambda graph, x: graph.make("swiglu_swapped", x),
    "ROPE with YaRN": _rope(0, HEAD, extrapolation=1.0).build,
    "ROPE with YaRN or with several positions": _rope(8, HEAD).build,
    "SOFT_MAX with ALiBi": lambda graph, x: graph.make(
        "soft_max_ext", x, None, ctypes.c_float(1.0), ctypes.c_float(0.0)
    ),
    "MUL_MAT outside attention": lambda graph, x: graph.make("mul_mat", x, x),
    "ADD of an input": lambda graph, x: graph.make("add", x, graph.tensor(VECTOR[:HEAD], "input")),
}


class Run:
    """A case computed by ggml and gone back through by the tape."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.operands = [RANDOM.normal(size=shape).astype(np.float32) for shape in case.shapes]
        self.graph = Graph()
        self.loras: dict[str, Lora] = {}
        made = [self._product(number, values) for number, values in enumerate(self.operands)]
        out = self.graph.make("cont", case.build(self.graph, *made))
        shape = tuple(native.tensor_at(out).ne[::-1])
        flat = self.graph.reshape(out, (1, 1, int(np.prod(shape[:3])), shape[3]))
        head = self.graph.tensor(np.ones((2, shape[3]), np.float32), "output.weight")
        nodes = read_graph(self.graph.list_nodes(self.graph.make("mul_mat", head, flat)))
        route = make_route(nodes, frozenset(self.loras))
        self.tape = Tape(nodes, route, self.loras, Multiplier(Threads(1)), POSITIONS, OPERATIONS)
        forward = Forward(self.tape, keeps=True)
        everything = np.ones(TOKENS, np.bool_)
        self.result = forward.run(self.graph, POSITIONS, POSITIONS, everything).reshape(shape)

    def _product(self, number: int, values: np.ndarray) -> int:
        rows = values.reshape(-1, values.shape[-1])
        num_rows, size = rows.shape
        identity = np.eye(num_rows, dtype=np.float32)
        b, da, db = (np.zeros(s, np.float32) for s in ((size, num_rows), identity.shape, (size, num_rows)))
        self.loras[f"operand.{number}"] = Lora(identity, b, np.float32(1), da, db)
        weight = self.graph.tensor(rows.T, f"operand.{number}.weight")
        one = self.graph.tensor(identity, "identity.weight")  # a tape keeps results of nodes, not inputs
        x = self.graph.make("mul_mat", one, self.graph.tensor(identity, "identity"))
        return self.graph.reshape(self.graph.make("mul_mat", weight, x), values.shape)

    def gradients(self, g: np.ndarray) -> list[np.ndarray]:
        self.tape.backward(g.reshape(-1, g.shape[-1]).astype(np.float32))
        found = (self.loras[f"operand.{number}"].db.T for number in range(len(self.operands)))
        return [gradient.reshape(x.shape) for gradient, x in zip(found, self.operands, strict=True)]

    def slopes(self, g: np.ndarray, step: float = 1e-5) -> list[np.ndarray]:
        """The same by differences, in float64."""
        operands = [x.astype(np.float64) for x in self.operands]
        found = []
        for x in operands:
            slope = np.zeros_like(x)
            for place in np.ndindex(x.shape):
                ends = []
                for shift in (step, -2 * step):
                    x[place] += shift
                    ends.append(float((self.case.compute(*operands) * g).sum()))
                x[place] += step
                slope[place] = (ends[0] - ends[1]) / (2 * step)
            found.append(slope)
        return found


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_differences(name):
    run = Run(CASES[name])
    expected = run.case.compute(*(x.astype(np.float64) for x in run.operands))
    np.testing.assert_allclose(run.result, expected, rtol=0, atol=run.case.tolerance * np.abs(expected).max())
    g = RANDOM.normal(size=run.result.shape)
    for found, slope in zip(run.gradients(g), run.slopes(g), strict=True):
        np.testing.assert_allclose(found, slope, rtol=0, atol=2e-6 * np.abs(slope).max())


def test_every_operation_stands_in_a_case():
    nodes = [node for case in CASES.values() for node in Run(case).tape.nodes]
    # No graph holds a node called CACHE, `read_graph` makes it of a view of the key-value cache.
    assert set(BACKWARD) - {node.op for node in nodes} == {"CACHE"}
    kinds = {node.kind.removesuffix("GLU") for node in nodes}
    assert set(ACTIVATIONS) <= kinds


@pytest.mark.parametrize("words", REFUSED)
def test_what_has_no_gradient_is_named(words):
    shape = (1, TOKENS, HEADS, HEAD)
    with pytest.raises(BackendError, match=f"cannot train this architecture: no gradient of .*{words}"):
        Run(Case([shape], REFUSED[words], lambda x: x))
