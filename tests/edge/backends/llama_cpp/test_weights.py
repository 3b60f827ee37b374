"""Products with weights of every type, and the head's loss, against plain numpy on dequantised values."""

import ctypes

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="needs the llama extra")
gguf = pytest.importorskip("gguf", reason="needs the llama extra")

from edge.backends.llama_cpp import native  # noqa: E402
from edge.backends.llama_cpp.head import apply_head  # noqa: E402
from edge.backends.llama_cpp.weights import Multiplier, Threads, Weight  # noqa: E402

pytestmark = pytest.mark.llama
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
TYPES += ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
NUM_OUT, NUM_IN = 67, 512


def quantise(values, name):
    """A weight of one type, its bytes, and what `gguf` says they mean."""
    kind = gguf.GGMLQuantizationType[name]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    row_bytes = values.shape[1] // block * block_bytes
    raw = np.zeros((len(values), row_bytes), np.uint8)
    ggml = native.open_library().ggml
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk(
        *(ctypes.c_int(kind), ctypes.c_void_p(values.ctypes.data), ctypes.c_void_p(raw.ctypes.data)),
        *(ctypes.c_int64(0), ctypes.c_int64(len(values)), ctypes.c_int64(values.shape[1]), None),
    )
    weight = Weight(int(kind), raw.ctypes.data, row_bytes, values.shape[1], len(values))
    return weight, raw, gguf.quants.dequantize(raw, kind)


@pytest.fixture(params=[1, 3, 70], ids=["1 thread", "3 threads", "70 threads"])
def multiplier(request):
    """One that shares even these small products, and whose blocks are a few rows."""
    return Multiplier(Threads(request.param), block_values=5 * NUM_IN, small_product=1)


@pytest.mark.parametrize("name", TYPES)
def test_products_with_a_weight_are_those_with_its_values(name, multiplier):
    random = np.random.default_rng(0)
    weight, _raw, values = quantise(random.normal(size=(NUM_OUT, NUM_IN)).astype(np.float32), name)
    assert native.type_name(weight.kind).upper() == name
    dy = random.normal(size=(9, NUM_OUT)).astype(np.float32)
    np.testing.assert_allclose(multiplier.backward(dy, weight), dy @ values, atol=2e-5)


@pytest.mark.parametrize("name", ["F32", "Q4_K"])
def test_the_loss_and_its_gradient_are_the_softmaxs(name, multiplier):
    random = np.random.default_rng(1)
    head, _raw, values = quantise(random.normal(0, 0.2, size=(NUM_OUT, NUM_IN)).astype(np.float32), name)
    hidden = random.normal(size=(11, NUM_IN)).astype(np.float32)
    targets = random.integers(0, NUM_OUT, 11).astype(np.int32)
    weighted = random.random(11).astype(np.float32)
    logits = hidden.astype(np.float64) @ values.T
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = apply_head(hidden, head, multiplier, targets, weighted)
    losses = -np.log(shares[np.arange(11), targets])
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    np.testing.assert_array_equal(found.predicted, logits.argmax(-1))
    expected = (weighted[:, None] * (shares - np.eye(NUM_OUT)[targets])) @ values
    np.testing.assert_allclose(found.d_hidden, expected, atol=1e-5 * np.abs(expected).max())
    without = apply_head(hidden, head, multiplier, targets)
    assert without.d_hidden is None
    np.testing.assert_array_equal(without.losses, found.losses)


def test_a_target_of_no_probability_has_a_finite_loss(multiplier):
    head, _raw, _ = quantise(np.array([[200.0, 0.0], [0.0, 0.0], [-300.0, 0.0]], np.float32), "F32")
    hidden, one = np.array([[1.0, 0.0]], np.float32), np.ones(1, np.float32)
    found = apply_head(hidden, head, multiplier, np.array([1], np.int32), one)
    assert found.losses.tolist() == [200.0]
    assert found.d_hidden.tolist() == [[200.0, 0.0]]


def test_shared_work_comes_back_in_order():
    threads = Threads(3)
    assert threads.share(lambda n: n * n, list(range(10)), is_small=False) == [n * n for n in range(10)]
    assert [list(part) for part in threads.split(2)] == [[0], [1]]
    with pytest.raises(ZeroDivisionError):
        threads.share(lambda n: 1 // n, [1, 2, 0], is_small=False)
