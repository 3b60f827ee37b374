import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from converters.errors import AdapterError
from coordinator.first_version import check_base, make_first_version
from coordinator.initial_adapter import settle
from coordinator.ledger.state import CoordinatorState
from edge.errors import ConfigError, StateError


def found(fleet, **changes):
    config = fleet.config(**changes)
    with CoordinatorState(fleet.folder, config.fleet) as state:
        settled, given = settle(config, state.journal)
        return make_first_version(settled, state, 0.0, given), state.versions.sketch


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


def test_the_last_blocks_alone_are_taken_again_without_being_named_again(fleet):
    version, _ = found(fleet, ranks=(4,), targets=("q_proj",), num_layers=1)
    again, _ = found(fleet, ranks=(4,))
    assert again == version
    config = fleet.config(ranks=(4,), targets=("q_proj",), num_layers=1)
    assert settle(config)[0].targets == ("model.layers.1.self_attn.q_proj",)
    with pytest.raises(StateError, match="targets"):
        found(fleet, ranks=(4,), targets=("q_proj",))


def test_a_rank_that_no_layer_can_hold_is_refused_in_a_fresh_folder_only(fleet):
    wide = fleet.config(ranks=(13,))
    with CoordinatorState(fleet.folder, wide.fleet) as state:
        with pytest.raises(AdapterError, match=r"rank is 13, expected 1 to 12: .* 16 inputs and 12 outputs"):
            check_base(wide, state)
        make_first_version(settle(wide, state.journal)[0], state, 0.0)  # as older ones did
        check_base(wide, state)
