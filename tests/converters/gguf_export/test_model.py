import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.bases.read import read_base
from converters.errors import BaseModelError
from converters.gguf_export.model import write_gguf

torch = pytest.importorskip("torch", reason="needs the torch extra")
transformers = pytest.importorskip("transformers", reason="needs the torch extra")

TOKENS = [0, *np.random.default_rng(0).integers(2, 258, 40).tolist()]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
NAMES = ("llama", "llama-mha", "llama-mqa", "llama-tied", "mistral", "qwen2", "qwen3", "olmo2", "olmo2-tied")
NAMES += ("phi3", "gemma3")
# llama.cpp's GELU is a table of float16.
TOLERANCE = {"gemma3": 2e-2}


def changed(folder, tmp_path, **config):
    """A copy of `folder` with other entries in config.json."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(content | config))
    return copy


def same_logits(llama, folder, path, tolerance=2e-4):
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(torch.tensor([TOKENS])).logits[0].numpy()
    np.testing.assert_allclose(llama.logits(llama.load(path), TOKENS), expected, atol=tolerance, rtol=0)


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_computes_the_same_logits(llama, make_model, make_gguf, name):
    same_logits(llama, make_model(name), make_gguf(name), TOLERANCE.get(name, 2e-4))


@pytest.mark.torch
@pytest.mark.parametrize("rope", [LLAMA3, LINEAR], ids=["llama3", "linear"])
def test_scaled_rotary_embeddings_are_carried_over(llama, make_model, make_gguf, rope):
    changes = {"rope_parameters": rope}
    same_logits(llama, make_model("llama", **changes), make_gguf("llama", **changes))


@pytest.mark.torch
def test_older_configurations_mean_the_same(llama, make_model, tmp_path):
    """transformers 4 has rope_theta and rope_scaling instead of rope_parameters."""
    folder = make_model("llama", rope_parameters=LLAMA3)
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    copy = changed(folder, tmp_path, rope_parameters=None, rope_theta=1e4, rope_scaling=scaling)
    write_gguf(copy, tmp_path / "model.gguf")
    same_logits(llama, folder, tmp_path / "model.gguf")


@pytest.mark.torch
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_of_another_width_become_float32(llama, make_model, tmp_path, dtype):
    folder = shutil.copytree(make_model("qwen2"), tmp_path / "copy")
    weights = {name: array.astype(dtype) for name, array in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    write_gguf(folder, tmp_path / "model.gguf")
    same_logits(llama, folder, tmp_path / "model.gguf")


@pytest.mark.torch
def test_an_unknown_architecture_is_named_with_the_known(make_model, tmp_path):
    folder = changed(make_model("llama"), tmp_path, model_type="starcoder2")
    with pytest.raises(
        BaseModelError, match=r"starcoder2.* llama, mistral, qwen2, qwen3, olmo2, phi3, gemma3_text"
    ):
        write_gguf(folder, tmp_path / "model.gguf")


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("llama", {"hidden_act": "gelu"}, "its activation is gelu, expected silu"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "RoPE scaling is yarn"),
        ("qwen2", {"rope_parameters": LLAMA3}, "RoPE scaling is llama3"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen2", {"head_dim": 32}, "head_dim is 32"),
        ("olmo2", {"attention_bias": True}, "attention_bias"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("gemma3", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar is 64, expected 32"),
        ("gemma3", {"hidden_activation": "silu", "attn_logit_softcapping": 50.0}, "silu.*softcapping"),
        ("llama", {"rms_norm_eps": None, "hidden_size": None}, "lacks hidden_size, rms_norm_eps"),
        ("llama", {"quantization": {"bits": 4, "group_size": 32}}, "is quantised"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(make_model, tmp_path, name, changes, named):
    folder = changed(make_model(name), tmp_path, **changes)
    with pytest.raises(BaseModelError, match=named):
        write_gguf(folder, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("model.gguf*"))


@pytest.mark.torch
def test_tensors_without_a_place_are_refused_all_at_once(make_model, tmp_path):
    folder = shutil.copytree(make_model("llama"), tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    weights |= {f"model.layers.0.router.{name}": np.ones((2, 2), np.float32) for name in ("gate", "up")}
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(BaseModelError, match=r"no place for .*router\.gate, .*router\.up"):
        write_gguf(folder, tmp_path / "model.gguf")


@pytest.mark.torch
def test_attention_beyond_the_window_is_not_promised(llama, make_gguf):
    model = llama.load(make_gguf("mistral"))
    assert llama.api.llama_model_n_ctx_train(model) == 128


@pytest.mark.torch
@pytest.mark.parametrize("quant", ["q8_0", "q4_0", "f16"])
def test_the_file_can_be_quantised(llama, make_gguf, quant):
    loaded = llama.logits(llama.load(make_gguf("llama", quant)), TOKENS)
    plain = llama.logits(llama.load(make_gguf("llama")), TOKENS)
    assert 0 < np.abs(loaded - plain).max() < 0.5 * np.abs(plain).max()


@pytest.mark.torch
def test_read_base_still_reads_the_source(make_model):
    assert read_base(make_model("phi3")).num_layers == 2
