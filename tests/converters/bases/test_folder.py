"""Base models on disk: what is in them, and a fingerprint that belongs to the model and not to the folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from converters.bases.folder import FolderBase
from converters.bases.read import read_base
from converters.errors import BaseModelError

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def weights() -> dict[str, np.ndarray]:
    """Values that bfloat16 and float16 hold exactly."""
    shapes = {
        "model.embed_tokens.weight": (16, 8),
        "model.layers.0.self_attn.q_proj.weight": (8, 8),
        "model.layers.0.self_attn.v_proj.weight": (4, 8),
        "model.layers.1.self_attn.q_proj.weight": (8, 8),
        "model.layers.1.mlp.big.weight": (300, 400),  # more than is hashed whole
        "model.layers.1.input_layernorm.weight": (8,),
    }
    values = {name: np.arange(np.prod(shape), dtype=np.float32) for name, shape in shapes.items()}
    return {name: ((values[name] * 7 + len(name)) % 17 / 8 - 1).reshape(shapes[name]) for name in shapes}


def write(folder: Path, config: dict[str, Any] | None = None, **files: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    for stem, tensors in (files or {"model": weights()}).items():
        save_file(tensors, folder / f"{stem}.safetensors")
    return folder


def fingerprint(folder: Path) -> str:
    return read_base(folder).fingerprint


def write_bfloat16(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """By hand: numpy has no bfloat16."""
    header, data = {}, b""
    for name, values in tensors.items():
        raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": values.shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def test_modules_are_the_linear_layers_with_their_features(tmp_path: Path) -> None:
    base = read_base(write(tmp_path))
    assert dict(base.modules) == {
        "model.layers.0.self_attn.q_proj": (8, 8),
        "model.layers.0.self_attn.v_proj": (8, 4),
        "model.layers.1.mlp.big": (400, 300),
        "model.layers.1.self_attn.q_proj": (8, 8),
    }
    assert (base.num_layers, base.is_quantized) == (2, False)


def test_a_head_of_its_own_is_a_module_and_a_tied_one_is_not(tmp_path: Path) -> None:
    with_head = weights() | {"lm_head.weight": weights()["model.embed_tokens.weight"]}
    assert "lm_head" not in read_base(write(tmp_path, model=with_head)).modules
    untied = CONFIG | {"tie_word_embeddings": False}
    assert read_base(write(tmp_path, untied, model=with_head)).modules["lm_head"] == (8, 16)


def test_the_fingerprint_is_the_same_on_every_machine(tmp_path: Path) -> None:
    golden = "115ba46305248363d87e6498c859f2989404bfc19a2c527c0a3814ec7863a7be"
    assert fingerprint(write(tmp_path)) == golden


def test_what_does_not_change_the_model_does_not_change_the_fingerprint(tmp_path: Path) -> None:
    expected = fingerprint(write(tmp_path / "plain"))
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    head = {"lm_head.weight": weights()["model.embed_tokens.weight"]}
    assert fingerprint(write(tmp_path / "extras", model=weights() | inv_freq | head)) == expected
    half = {name: values.astype(np.float16) for name, values in weights().items()}
    assert fingerprint(write(tmp_path / "half", model=half)) == expected
    write_bfloat16(write(tmp_path / "brain") / "model.safetensors", weights())
    assert fingerprint(tmp_path / "brain") == expected
    config = CONFIG | {
        "rope_theta": 10000,
        "torch_dtype": "float16",
        "_name_or_path": "elsewhere",
        "eos_token_id": 3,
    }
    assert fingerprint(write(tmp_path / "config", config)) == expected
    newer = {key: value for key, value in CONFIG.items() if key != "rope_theta"}
    newer |= {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "head_dim": 4}
    assert fingerprint(write(tmp_path / "newer", newer)) == expected


@pytest.mark.parametrize("has_index", [True, False])
def test_shards_are_one_model(tmp_path: Path, has_index: bool) -> None:
    items = list(weights().items())
    shards = {"model-00001-of-00002": dict(items[:3]), "model-00002-of-00002": dict(items[3:])}
    folder = write(tmp_path / "sharded", **shards)
    if has_index:
        where = {name: f"{stem}.safetensors" for stem, tensors in shards.items() for name in tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert fingerprint(folder) == fingerprint(write(tmp_path / "single"))
    assert read_base(folder).num_layers == 2


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 4},
        {"num_key_value_heads": 2},
        {"rms_norm_eps": 1e-6},
        {"rope_theta": 500000.0},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"model_type": "qwen2"},
        {"head_dim": 2},
    ],
)
def test_another_architecture_is_another_model(tmp_path: Path, change: dict[str, Any]) -> None:
    assert fingerprint(write(tmp_path / "a")) != fingerprint(write(tmp_path / "b", CONFIG | change))


@pytest.mark.parametrize("name", list(weights()))
def test_another_weight_is_another_model(tmp_path: Path, name: str) -> None:
    changed = weights()
    changed[name][0, ...] += 1
    assert fingerprint(write(tmp_path / "a")) != fingerprint(write(tmp_path / "b", model=changed))
    renamed = weights()
    renamed[f"{name}x"] = renamed.pop(name)
    assert fingerprint(write(tmp_path / "a")) != fingerprint(write(tmp_path / "c", model=renamed))
    turned = weights()
    turned[name] = turned[name].reshape(-1, 2)
    assert fingerprint(write(tmp_path / "a")) != fingerprint(write(tmp_path / "d", model=turned))


def packed(num_out: int, num_in: int, bits: int) -> dict[str, np.ndarray]:
    scales = np.ones((num_out, num_in // 64), np.float32)
    return {"weight": np.zeros((num_out, num_in * bits // 32), np.uint32), "scales": scales, "biases": scales}


def quantized(folder: Path) -> FolderBase:
    q, v = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
    settings = {"group_size": 64, "bits": 4, v: {"group_size": 64, "bits": 8}}
    tensors = {f"{q}.{part}": values for part, values in packed(128, 192, 4).items()}
    tensors |= {f"{v}.{part}": values for part, values in packed(64, 192, 8).items()}
    tensors |= {f"model.embed_tokens.{part}": values for part, values in packed(512, 192, 4).items()}
    config = CONFIG | {"quantization": settings, "quantization_config": settings}
    return read_base(write(folder, config, model=tensors))


def test_a_quantised_mlx_folder_has_the_modules_of_the_unpacked_model(tmp_path: Path) -> None:
    base = quantized(tmp_path)
    assert base.is_quantized
    assert dict(base.modules) == {
        "model.layers.0.self_attn.q_proj": (192, 128),
        "model.layers.0.self_attn.v_proj": (192, 64),
    }


def test_a_quantised_model_has_no_fingerprint_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="is quantised and has no fingerprint"):
        _ = quantized(tmp_path).fingerprint


def test_other_quantisations_are_refused(tmp_path: Path) -> None:
    config = CONFIG | {"quantization_config": {"quant_method": "gptq"}}
    with pytest.raises(BaseModelError, match="quantised by gptq"):
        read_base(write(tmp_path, config))


def test_an_architecture_without_linear_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="gpt2 has no linear layers"):
        read_base(write(tmp_path, CONFIG | {"model_type": "gpt2"}))


def test_whatever_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="no such folder"):
        read_base(tmp_path / "nowhere")
    (tmp_path / "model.bin").touch()
    with pytest.raises(BaseModelError, match=r"bin: is a file"):
        read_base(tmp_path / "model.bin")
    with pytest.raises(BaseModelError, match=r"config\.json: cannot be read"):
        read_base(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BaseModelError, match=r"config\.json: is not JSON"):
        read_base(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BaseModelError, match="holds a list, expected a JSON object"):
        read_base(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(BaseModelError, match=r"holds no model\*\.safetensors"):
        read_base(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-1.safetensors"}}')
    with pytest.raises(BaseModelError, match=r"model-1\.safetensors: cannot be read"):
        read_base(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1, -4000])
def test_truncated_weights_are_named(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BaseModelError, match="truncated"):
        read_base(tmp_path)
