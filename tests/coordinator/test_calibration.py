import json

import numpy as np
import pytest

from converters.adapter import initial_adapter
from converters.base import match_targets, read_base
from coordinator.calibration import Calibration
from edge.errors import DataError
from edge.training.backends.toy import make_toy_base


def test_a_better_adapter_has_a_lower_loss_and_no_adapter_is_the_base(tmp_path):
    base = make_toy_base(tmp_path / "base")
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "on", "completion": "x"}) + "\n")
    modules = match_targets(read_base(base).modules, ["o_proj"])
    calibration = Calibration(base, tmp_path / "d.jsonl", seq_tokens=64, batch_tokens=64)
    plain = calibration.score(initial_adapter(modules, rank=2, scale=1.0, seed=0))
    assert plain == calibration.score(initial_adapter(modules, rank=2, scale=1.0, seed=1))
    assert 0 < plain.loss < 50
    assert 0 <= plain.exact <= 1
    moved = initial_adapter(modules, rank=2, scale=1.0, seed=0)
    for _, factors in moved:
        factors.b[:] = np.random.default_rng(0).standard_normal(factors.b.shape)
    assert calibration.score(moved).loss != plain.loss


def test_data_that_cannot_be_used_is_told_with_its_line(tmp_path):
    base = make_toy_base(tmp_path / "base")
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\nnothing\n')
    calibration = Calibration(base, tmp_path / "d.jsonl", seq_tokens=64, batch_tokens=64)
    with pytest.raises(DataError, match="2"):
        calibration.load()
