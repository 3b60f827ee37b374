import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from coordinator.beginning import settle
from coordinator.founding import found_fleet
from coordinator.state import CoordinatorState
from edge.errors import ConfigError, StateError


def found(fleet, **changes):
    config = fleet.config(**changes)
    with CoordinatorState(fleet.folder, config.fleet) as state:
        settled, beginning = settle(config, state.journal)
        return found_fleet(settled, state, 0.0, beginning), state.versions.sketch


def quantise(base):
    """Packs four-bit codes in MLX's form; which codes they are does not matter here."""
    names = [f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj")]
    tensors = {}
    for name in names:
        tensors[f"{name}.weight"] = np.zeros((64, 8), np.uint32)  # 64 x 64
        tensors[f"{name}.scales"] = tensors[f"{name}.biases"] = np.zeros((64, 1), np.float32)
    save_file(tensors, base / "model.safetensors", {"format": "mlx"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization": {"group_size": 64, "bits": 4}}))


def test_a_residual_is_not_carried_on_a_quantised_base(fleet):
    quantise(fleet.base)
    changes = {"ranks": (4,), "fingerprint": "ab" * 32}
    with pytest.raises(ConfigError, match=r"base: stages\.merge residual .* give the base in full precision"):
        found(fleet, strategy="fedex-lora", **changes)
    assert found(fleet, strategy="fedbuff", **changes)[0].version == 0


def test_no_sample_that_admits_quantised_copies_is_served_where_a_residual_is_carried(fleet):
    assert found(fleet, ranks=(4,), strategy="fedex-lora")[1] is None


def test_a_folder_with_residual_rows_is_not_served_by_a_strategy_without(fleet):
    found(fleet, ranks=(4,), strategy="fedex-lora", remainder_rank=8)
    with pytest.raises(StateError, match="is of residual rows 8, expected 0; give another --state"):
        found(fleet, ranks=(4,), strategy="fedbuff")
    found(fleet, ranks=(4,), strategy="fedex-lora", remainder_rank=8)
