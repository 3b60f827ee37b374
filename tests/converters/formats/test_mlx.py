"""mlx-lm's folder: golden form, folding of ranks and scales without rounding, and refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.adapter import Factors, LoraAdapter
from converters.errors import AdapterError, UnsupportedAdapter
from converters.formats.mlx import load_mlx, save_mlx

NAMES = [f"model.layers.{i}.self_attn.{layer}" for i in range(3) for layer in ("q_proj", "v_proj")]
MODULES = dict.fromkeys(NAMES, (3, 4))
PLAIN: dict[str, Any] = {"num_layers": 3, "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0}}


def ones(rank: int = 2, scale: float = 20.0) -> Factors:
    return Factors(np.ones((rank, 3), np.float32), np.ones((4, rank), np.float32), scale)


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def write(folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray]) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "adapters.safetensors")
    return folder


def tensors(rank: int = 2, name: str = NAMES[0]) -> dict[str, np.ndarray]:
    return {
        f"{name}.lora_a": np.ones((3, rank), np.float32),
        f"{name}.lora_b": np.ones((rank, 4), np.float32),
    }


def test_golden_files(tmp_path: Path) -> None:
    a, b = np.array([[1, 2], [3, 4]], np.float32), np.array([[5, 6]], np.float32)
    save_mlx(LoraAdapter({"m": Factors(a, b, 20.0)}), tmp_path)
    header = (
        b'{"m.lora_a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},'
        b'"m.lora_b":{"dtype":"F32","shape":[2,1],"data_offsets":[16,24]}}'
    )
    padded = header.ljust(-(-len(header) // 8) * 8)
    golden = len(padded).to_bytes(8, "little") + padded + np.float32([1, 3, 2, 4, 5, 6]).tobytes()
    assert (tmp_path / "adapters.safetensors").read_bytes() == golden
    assert config_of(tmp_path) == {
        "fine_tune_type": "lora",
        "lora_parameters": {"dropout": 0.0, "keys": ["m"], "rank": 2, "scale": 20.0},
        "num_layers": 1,
    }


def test_a_header_as_mlx_writes_it_is_read(tmp_path: Path) -> None:
    write(tmp_path, PLAIN | {"lora_parameters": {"rank": 1, "scale": 2.0}}, {})
    header = (  # not padded, and null for no metadata
        b'{"__metadata__":null,"m.lora_a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},'
        b'"m.lora_b":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]}}'
    )
    payload = len(header).to_bytes(8, "little") + header + np.float32([3, 4]).tobytes()
    (tmp_path / "adapters.safetensors").write_bytes(payload)
    assert load_mlx(tmp_path).modules["m"].b == [[4.0]]


@pytest.mark.parametrize(("first", "num_layers"), [(0, 3), (1, 2), (2, 1)])
def test_the_last_blocks_are_named_as_mlx_lm_names_them(tmp_path: Path, first: int, num_layers: int) -> None:
    save_mlx(LoraAdapter({name: ones() for name in NAMES[2 * first :]}), tmp_path, MODULES)
    config = config_of(tmp_path)
    assert config["num_layers"] == num_layers
    assert config["lora_parameters"]["keys"] == ["self_attn.q_proj", "self_attn.v_proj"]


@pytest.mark.parametrize("covered", [NAMES[:2], NAMES[:5], NAMES[1:3], [*NAMES, "lm_head"]])
def test_any_other_coverage_is_written_in_full_names(tmp_path: Path, covered: list[str]) -> None:
    save_mlx(LoraAdapter({name: ones() for name in covered}), tmp_path, MODULES | {"lm_head": (3, 4)})
    assert config_of(tmp_path)["lora_parameters"]["keys"] == sorted(covered)


def test_smaller_ranks_are_filled_with_zeros_and_cut_again(tmp_path: Path) -> None:
    adapter = LoraAdapter({NAMES[0]: ones(1), NAMES[1]: ones(3)})
    save_mlx(adapter, tmp_path)
    stored = load_file(tmp_path / "adapters.safetensors")
    np.testing.assert_array_equal(stored[f"{NAMES[0]}.lora_a"], [[1, 0, 0]] * 3)
    np.testing.assert_array_equal(stored[f"{NAMES[0]}.lora_b"], [[1] * 4, [0] * 4, [0] * 4])
    assert load_mlx(tmp_path) == adapter


def test_a_scale_twice_as_large_goes_into_b_and_comes_back(tmp_path: Path) -> None:
    adapter = LoraAdapter({NAMES[0]: ones(), NAMES[1]: ones(), NAMES[2]: ones(scale=40.0)})
    save_mlx(adapter, tmp_path)
    assert (load_file(tmp_path / "adapters.safetensors")[f"{NAMES[2]}.lora_b"] == 2).all()
    assert load_mlx(tmp_path) == adapter


def test_directions_that_mlx_lm_has_trained_since_are_kept(tmp_path: Path) -> None:
    save_mlx(LoraAdapter({NAMES[0]: ones(1), NAMES[1]: ones(2)}), tmp_path)
    path = tmp_path / "adapters.safetensors"
    trained = load_file(path)
    trained[f"{NAMES[0]}.lora_b"][1, 0] = 7
    save_file(trained, path)
    assert load_mlx(tmp_path).modules[NAMES[0]].rank == 2


def test_scales_that_would_round_are_refused_by_name(tmp_path: Path) -> None:
    adapter = LoraAdapter(
        {NAMES[0]: ones(), NAMES[1]: ones(), NAMES[2]: ones(scale=30.0), NAMES[3]: ones(scale=7.0)}
    )
    with pytest.raises(UnsupportedAdapter) as raised:
        save_mlx(adapter, tmp_path / "new")
    assert f"{NAMES[2]} has scale 30.0; {NAMES[3]} has scale 7.0" in str(raised.value)
    assert not (tmp_path / "new").exists()


def test_a_module_that_changes_nothing_yet_takes_any_scale(tmp_path: Path) -> None:
    untrained = ones(scale=30.0)._replace(b=np.zeros((4, 2), np.float32))
    adapter = LoraAdapter({NAMES[0]: ones(), NAMES[1]: ones(), NAMES[2]: untrained})
    save_mlx(adapter, tmp_path)
    assert load_mlx(tmp_path) == adapter


@pytest.mark.parametrize(
    ("config", "weights", "reason"),
    [
        (PLAIN | {"fine_tune_type": "dora"}, tensors(), "fine_tune_type is 'dora'"),
        ({"fine_tune_type": "full", "num_layers": 2, "lora_parameters": None}, tensors(), "'full'"),
        (PLAIN, tensors() | {f"{NAMES[0]}.m": np.ones(4, np.float32)}, r"q_proj\.m"),
        (PLAIN, tensors(name="other") | tensors(name="another"), "layer another; .*layer other"),
    ],
)
def test_what_cannot_be_carried_is_refused(
    tmp_path: Path, config: dict[str, Any], weights: dict[str, np.ndarray], reason: str
) -> None:
    with pytest.raises(UnsupportedAdapter, match=reason):
        load_mlx(write(tmp_path, config, weights), MODULES)


@pytest.mark.parametrize(
    ("config", "weights", "reason"),
    [
        ({"lora_parameters": {"rank": 2}}, tensors(), "scale"),
        ({}, tensors(), "lora_parameters"),
        (PLAIN, tensors(rank=5), "rank 5, its config says 2"),
        (PLAIN, {}, "holds no LoRA factors"),
        (PLAIN, {f"{NAMES[0]}.lora_a": np.ones((3, 2), np.float32)}, "lora_b is missing"),
    ],
)
def test_malformed_adapters_are_refused(
    tmp_path: Path, config: dict[str, Any], weights: dict[str, np.ndarray], reason: str
) -> None:
    with pytest.raises(AdapterError, match=reason):
        load_mlx(write(tmp_path, config, weights), MODULES)


def test_an_adapter_without_modules_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="without modules"):
        save_mlx(LoraAdapter({}), tmp_path)
