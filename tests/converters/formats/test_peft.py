"""PEFT's folder: golden form, patterns as PEFT reads them, and refusals that name everything at once."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.adapter import Factors, LoraAdapter
from converters.errors import AdapterError, UnsupportedAdapter
from converters.formats.peft import load_peft, save_peft

Q = "model.layers.0.self_attn.q_proj"
K = "model.layers.0.self_attn.k_proj"
V = "model.layers.1.self_attn.v_proj"
MODULES = {Q: (3, 4), K: (3, 4), V: (3, 4)}
PREFIX = "base_model.model."
PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 16}


def tensors(ranks: dict[str, int]) -> dict[str, np.ndarray]:
    found = {}
    for name, rank in ranks.items():
        found[f"{PREFIX}{name}.lora_A.weight"] = np.full((rank, 3), 1, np.float32)
        found[f"{PREFIX}{name}.lora_B.weight"] = np.full((4, rank), 2, np.float32)
    return found


def write(folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray]) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def adapter(ranks: dict[str, int], scale: float = 2.0) -> LoraAdapter:
    return LoraAdapter(
        {
            name: Factors(np.ones((r, 3), np.float32), np.ones((4, r), np.float32), scale)
            for name, r in ranks.items()
        }
    )


def test_golden_tensors(tmp_path: Path) -> None:
    a, b = np.array([[1, 2]], np.float32), np.array([[3]], np.float32)
    save_peft(LoraAdapter({"m": Factors(a, b, 0.5)}), tmp_path)
    header = (
        b'{"__metadata__":{"format":"pt"},'
        b'"base_model.model.m.lora_A.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
        b'"base_model.model.m.lora_B.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[8,12]}}'
    )
    padded = header.ljust(-(-len(header) // 8) * 8)
    golden = len(padded).to_bytes(8, "little") + padded + np.float32([1, 2, 3]).tobytes()
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == golden


def test_the_config_names_ranks_alphas_and_targets_and_no_path(tmp_path: Path) -> None:
    modules = adapter({Q: 2, K: 2}).modules | adapter({V: 4}, scale=3.0).modules
    save_peft(LoraAdapter(modules), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 4)
    assert config["rank_pattern"] == {V: 4}
    assert config["alpha_pattern"] == {V: 12}
    assert config["target_modules"] == sorted([Q, K, V])
    assert "/" not in json.dumps(config)


@pytest.mark.parametrize(
    ("covered", "targets"),
    [((Q, K), ["k_proj", "q_proj"]), ((V,), ["v_proj"])],
)
def test_targets_are_endings_where_these_mean_just_the_adapters_modules(
    tmp_path: Path, covered: tuple[str, ...], targets: list[str]
) -> None:
    save_peft(adapter(dict.fromkeys(covered, 2)), tmp_path, MODULES)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == targets


def test_partial_coverage_is_written_in_full_names(tmp_path: Path) -> None:
    save_peft(adapter({Q: 2}), tmp_path, MODULES | {Q.replace("0", "1"): (3, 4)})
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == [Q]


def test_patterns_are_read_as_peft_reads_them(tmp_path: Path) -> None:
    config = PLAIN | {
        "rank_pattern": {"self_attn.k_proj": 4, "v_.*": 1},
        "alpha_pattern": {"k_proj|v_proj": 8},
    }
    read = load_peft(write(tmp_path, config, tensors({Q: 2, K: 4, V: 1})), MODULES)
    assert {name: factors.scale for name, factors in read} == {Q: 16 / 2, K: 8 / 4, V: 8 / 1}


def test_rslora_divides_by_the_root_of_the_rank(tmp_path: Path) -> None:
    read = load_peft(write(tmp_path, PLAIN | {"use_rslora": True}, tensors({Q: 2})))
    assert read.modules[Q].scale == 16 / math.sqrt(2)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floating_types_are_widened(tmp_path: Path, dtype: str) -> None:
    weights = {name: values.astype(dtype) for name, values in tensors({Q: 2}).items()}
    read = load_peft(write(tmp_path, PLAIN, weights))
    np.testing.assert_array_equal(read.modules[Q].b, np.full((4, 2), 2, np.float32))


def test_everything_that_cannot_be_carried_is_named_at_once(tmp_path: Path) -> None:
    config = PLAIN | {
        "use_dora": True,
        "bias": "all",
        "modules_to_save": ["lm_head"],
        "init_lora_weights": "pissa",
    }
    weights = tensors({Q: 2, "model.layers.9.mlp": 2, K: 5}) | {
        f"{PREFIX}{Q}.lora_magnitude_vector": np.ones(4, np.float32),
        f"{PREFIX}{V}.lora_A.weight": np.ones((2, 3), np.float32),
        f"{PREFIX}lm_head.weight": np.ones((2, 2), np.float32),
    }
    with pytest.raises(UnsupportedAdapter) as raised:
        load_peft(write(tmp_path, config, weights), MODULES | {Q: (3, 7)})
    for part in (
        "DoRA",
        "bias is 'all'",
        "modules_to_save",
        "pissa",
        "lora_magnitude_vector",
        "lm_head.weight",
        "model.layers.9.mlp",
        f"{Q} is for (3, 4) features (in, out), the base model has (3, 7)",
        f"{K} has rank 5, its config says 2",
        f"{V}.lora_B.weight is missing",
    ):
        assert part in raised.value.whole
    assert "\n" not in raised.value.whole
    assert len(str(raised.value)) <= 300


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (PLAIN | {"peft_type": "LOHA"}, "peft_type is LOHA"),
        (PLAIN | {"lora_bias": True}, "lora_bias"),
        (PLAIN | {"trainable_token_indices": [1]}, "trainable_token_indices"),
        (PLAIN | {"target_parameters": ["experts"]}, "target_parameters"),
        (PLAIN | {"layer_replication": [[0, 2]]}, "layer_replication"),
    ],
)
def test_other_kinds_of_adapters_are_refused(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedAdapter, match=reason):
        load_peft(write(tmp_path, config, tensors({Q: 2})))


@pytest.mark.parametrize(
    ("config", "weights", "reason"),
    [
        ({"r": 2}, tensors({Q: 2}), "peft_type"),
        (PLAIN | {"r": "2"}, tensors({Q: 2}), r"\$.r"),
        (PLAIN | {"rank_pattern": {"(": 2}}, tensors({Q: 2}), "no regular expression"),
        (PLAIN, {}, "holds no LoRA factors"),
        (PLAIN, {name: v.astype(np.int32) for name, v in tensors({Q: 2}).items()}, "type I32"),
        (PLAIN, {name: v[0] for name, v in tensors({Q: 2}).items()}, "must be matrices"),
        (PLAIN, {name: v.T.copy() for name, v in tensors({Q: 2}).items()}, "must share one rank"),
        (PLAIN, {name: v * np.nan for name, v in tensors({Q: 2}).items()}, "not finite"),
    ],
)
def test_malformed_adapters_are_refused(
    tmp_path: Path, config: dict[str, Any], weights: dict[str, np.ndarray], reason: str
) -> None:
    with pytest.raises(AdapterError, match=reason):
        load_peft(write(tmp_path, config, weights))


def test_missing_truncated_and_pickled_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"adapter_config.json: cannot be read"):
        load_peft(tmp_path)
    write(tmp_path, PLAIN, tensors({Q: 2}))
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(AdapterError, match="truncated"):
        load_peft(tmp_path)
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickled"):
        load_peft(tmp_path)


def test_what_does_not_fit_the_base_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapter, match="no linear layer other"):
        save_peft(adapter({"other": 2}), tmp_path / "new", MODULES)
    with pytest.raises(AdapterError, match="without modules"):
        save_peft(LoraAdapter({}), tmp_path / "new", MODULES)
    assert not (tmp_path / "new").exists()


def test_the_tensors_of_a_saved_folder_bear_peft_names(tmp_path: Path) -> None:
    save_peft(adapter({Q: 2}), tmp_path)
    found = load_file(tmp_path / "adapter_model.safetensors")
    assert {name: values.shape for name, values in found.items()} == {
        f"{PREFIX}{Q}.lora_A.weight": (2, 3),
        f"{PREFIX}{Q}.lora_B.weight": (4, 2),
    }
