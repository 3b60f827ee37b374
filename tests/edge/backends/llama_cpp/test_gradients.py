"""Gradients of the llama.cpp backend against torch's on the same, dequantised weights.

All linear layers carry LoRA. Six examples, one of them of a single position, half of the targets masked.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("peft", reason="needs the torch extra")
pytest.importorskip("llama_cpp", reason="needs the llama extra")

from converters.adapter import Factors, LoraAdapter  # noqa: E402
from edge.backends import load_model  # noqa: E402
from edge.training.packing import Example, build_batch  # noqa: E402

pytestmark = [pytest.mark.llama, pytest.mark.torch]
LLAMAS = ("llama", "llama-mha", "llama-mqa", "llama-tied")  # tied: with biases, too
LENGTHS = (9, 1, 14, 3, 7, 20)
WIDE = {"hidden_size": 256, "intermediate_size": 512}  # K-quants have blocks of 256 values

SIX_LAYERS = {  # llama.cpp before 0.3.36 knows no other pattern for Gemma 3
    "num_hidden_layers": 6,
    "layer_types": 5 * ["sliding_attention"] + ["full_attention"],
}


class Error(NamedTuple):
    """Of a gradient."""

    largest: float  # difference of an entry over the factor's largest one; of the worst factor
    norm: float  # of the whole difference over that of the whole gradient
    loss: float  # nats


# torch and llama.cpp add the same float32 products in another order: 1e-6 to 3e-6 were seen.
FLOAT32 = Error(1e-5, 5e-6, 5e-6)
# ggml reads GELU from a table in half precision, so its values are off by up to 2^-11; 3e-3 was seen over
# six layers, 9e-4 over two.
GELU_TABLE = Error(1e-2, 5e-3, 1e-3)
# llama.cpp rounds activations to the weights' type before it multiplies, 11 bits or 8, and the gradient knows
# nothing of that: the same one as if the weights were float32. 1.2e-3 and 9e-3 were seen.
FLOAT16, BFLOAT16 = Error(2e-3, 1e-3, 1e-3), Error(3e-2, 1e-2, 5e-3)
# Beside quantised weights it rounds activations to 8 bits (Q8_0, Q8_K); 2e-2 to 9e-2 were seen.
QUANTISED = Error(1e-1, 5e-2, 1e-2)
# With the same rounding in torch 1e-6 is left. Where both sides' rounding errors fall on either side of a
# half, an activation lies a whole step apart: up to 2.5e-3 were seen.
ROUNDED_ALIKE = Error(5e-3, 3e-3, 1e-3)


def round_q8_0(x):
    blocks = x.reshape(-1, 32)
    step = blocks.abs().amax(-1, keepdim=True) / 127
    return (torch.round(blocks / step) * step.half().float()).view_as(x)


def round_q8_k(x):
    blocks = x.reshape(-1, 256)
    farthest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    return (torch.round(blocks * (-127 / farthest)).clamp(max=127) * (farthest / -127)).view_as(x)


ROUNDING: dict[str, Callable] = {
    "f16": lambda x: x.half().float(),
    "bf16": lambda x: x.bfloat16().float(),
    **dict.fromkeys(("q8_0", "q4_0", "q5_0"), round_q8_0),
    **dict.fromkeys(("q4_k_m", "q5_k_m", "q6_k"), round_q8_k),
}


def make_batch(lengths):
    random = np.random.default_rng(0)
    examples = [
        Example(random.integers(2, 250, length + 1).astype(np.int32), np.arange(length + 1) >= length // 2)
        for length in lengths
    ]
    return build_batch(examples)


@pytest.fixture(scope="module")
def batch():
    return make_batch(LENGTHS)


def random_adapter(modules, chosen=""):
    """Factors of unlike ranks and scales for every module whose name contains `chosen`."""
    random = np.random.default_rng(1)
    found = {}
    for name, (num_in, num_out) in modules.items():
        rank = int(random.integers(1, 6))
        a, b = random.normal(0, num_in**-0.5, (rank, num_in)), random.normal(0, 0.1, (num_out, rank))
        if chosen in name:
            found[name] = Factors(a.astype(np.float32), b.astype(np.float32), 4 / rank)
    return LoraAdapter(found)


def gradient(model, adapter, batch):
    """The loss, and the gradient of each factor: AdamW's first moment after one step is a tenth of it."""
    model.set_adapter(adapter)
    model.begin(weight_decay=0.0, clip_norm=0.0)
    loss = model.step([batch], 0.0)
    flat, parts = 10 * model.snapshot()["first"], {}
    for name, factors in adapter:
        for kind, matrix in (("a", factors.a), ("b", factors.b)):
            parts[name, kind] = flat[: matrix.size].reshape(matrix.shape)
            flat = flat[matrix.size :]
    return loss, parts


@pytest.fixture
def find_error(load_dequantised):
    """`find_error(folder, path, batch)`: of the file's gradient, against the folder's in torch."""

    def find(folder, path, batch, *, chosen="", rounding=None):
        ours, theirs = load_model("llama_cpp", path), load_dequantised(folder, path)
        for linear in theirs.model.modules():
            if rounding and type(linear) is torch.nn.Linear:
                linear.register_forward_pre_hook(lambda _, x: (x[0] + (rounding(x[0]) - x[0]).detach(),))
        adapter = random_adapter(theirs.card.modules, chosen)
        (loss, found), (expected_loss, expected) = (
            gradient(model, adapter, batch) for model in (ours, theirs)
        )
        errors = {}
        for (name, kind), g in found.items():
            turned = ours.naming.to_hub_rows(name, g) if kind == "b" else g
            errors[name, kind] = turned - expected[name, kind]
        return Error(
            max(float(np.abs(error).max() / np.abs(expected[key]).max()) for key, error in errors.items()),
            norm_of(errors) / norm_of(expected),
            abs(loss - expected_loss),
        )

    return find


def norm_of(parts):
    return float(sum(np.square(part, dtype=np.float64).sum() for part in parts.values()) ** 0.5)


def assert_within(found, bound):
    print(f"largest {found.largest:.1e}, norm {found.norm:.1e}, loss {found.loss:.1e}")
    assert all(one <= other for one, other in zip(found, bound, strict=True)), (found, bound)


@pytest.mark.parametrize(
    "name", [*LLAMAS, "mistral", "qwen2", "qwen3", "olmo2", "olmo2-tied", "phi3", "gemma3"]
)
def test_gradients_are_torchs_in_float32(name, find_error, make_model, make_gguf, batch):
    changes, bound = (SIX_LAYERS, GELU_TABLE) if name == "gemma3" else ({}, FLOAT32)
    assert_within(find_error(make_model(name, **changes), make_gguf(name, **changes), batch), bound)


@pytest.mark.parametrize("chosen", ["layers.1.self_attn.k_proj", "v_proj", "layers.0.mlp.down_proj"])
def test_gradients_of_a_few_modules_are_torchs(chosen, find_error, make_model, make_gguf, batch):
    assert_within(find_error(make_model("llama"), make_gguf("llama"), batch, chosen=chosen), FLOAT32)


@pytest.mark.parametrize("lengths", [(250, 130, 200, 60, 90), (2,) * 150], ids=["long", "many"])
def test_gradients_of_more_than_is_computed_at_once_are_torchs(lengths, find_error, make_model, make_gguf):
    batch = make_batch(lengths)
    assert_within(find_error(make_model("llama"), make_gguf("llama"), batch), FLOAT32)


def test_gradients_through_scaled_rotary_embeddings_are_torchs(find_error, make_model, make_gguf, batch):
    scaling = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    changes = {"rope_parameters": scaling}
    assert_within(find_error(make_model("llama", **changes), make_gguf("llama", **changes), batch), FLOAT32)


@pytest.mark.parametrize("quant", ROUNDING)
def test_gradients_beside_smaller_weights_are_near_torchs(quant, find_error, make_model, make_gguf, batch):
    bound = {"f16": FLOAT16, "bf16": BFLOAT16}.get(quant, QUANTISED)
    assert_within(find_error(make_model("llama", **WIDE), make_gguf("llama", quant, **WIDE), batch), bound)


@pytest.mark.parametrize("quant", ROUNDING)
def test_what_differs_is_llama_cpps_rounding_of_activations(quant, find_error, make_model, make_gguf, batch):
    changes = {**WIDE, "num_hidden_layers": 1}
    folder, path = make_model("llama", **changes), make_gguf("llama", quant, **changes)
    assert_within(find_error(folder, path, batch, rounding=ROUNDING[quant]), ROUNDED_ALIKE)
