"""torch and MLX train alike: the same base, adapter, data order and plan give the same losses."""

import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from converters.adapter import LoraAdapter, initial_adapter
from converters.base import match_targets
from edge.training.backends import load_model
from edge.training.dataset import DataSource, load_dataset
from edge.training.packing import iterate_batches

pytestmark = [pytest.mark.torch, pytest.mark.mlx]
pytest.importorskip("peft", reason="needs the torch extra")
pytest.importorskip("mlx_lm", reason="needs the mlx extra")
ASSETS = Path(os.environ.get("TUNEFLEET_ASSETS", Path(__file__).parents[5] / "shared" / "assets"))
NUM_STEPS = 50


def train(name, base, data):
    model = load_model(name, base, precision="float32")
    examples = load_dataset(DataSource(path=str(data)), model.tokenizer, seq_tokens=256).examples
    modules = match_targets(model.card.modules, ["q_proj", "v_proj"])
    model.set_adapter(initial_adapter(modules, rank=8, scale=2.0, seed=0))
    model.begin(weight_decay=0.01, clip_norm=1.0)
    batches = iterate_batches(examples, seq_tokens=256, batch_tokens=512, seed=0)
    losses = [model.step([batch], 3e-3) for batch in islice(batches, NUM_STEPS)]
    return np.array(losses), model


@pytest.mark.assets
@pytest.mark.skipif(not ASSETS.exists(), reason="needs ../shared/assets or TUNEFLEET_ASSETS")
def test_fifty_steps_of_stories260k_give_the_same_losses(tmp_path, record_property):
    rows = json.loads((ASSETS / "data/dolly15k/local_training_5.json").read_text())
    short = [row for row in rows if len(row["instruction"]) + len(row["response"]) < 400][:200]
    data = tmp_path / "data.jsonl"
    pairs = [{"prompt": f"{row['instruction']}\n", "completion": row["response"]} for row in short]
    data.write_text("\n".join(map(json.dumps, pairs)))
    base = ASSETS / "models/stories260K"
    (theirs, in_torch), (ours, in_mlx) = (train(name, base, data) for name in ("torch", "mlx"))
    difference = float(np.abs(theirs - ours).max())
    record_property("largest difference of the loss", difference)
    print(f"loss {theirs[0]:.4f} to {theirs[-1]:.4f}; torch and MLX differ by at most {difference:.1e}")
    assert theirs[-10:].mean() < theirs[:10].mean()
    assert difference < 1e-3
    for name, factors in in_torch.adapter():
        np.testing.assert_allclose(in_mlx.adapter().modules[name].b, factors.b, atol=2e-3)


def test_torch_and_mlx_agree_before_training(llama_base, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "turn on ", "completion": "the light in the kitchen"}))
    sums = []
    for name in ("torch", "mlx"):
        model = load_model(name, llama_base, precision="float32")
        examples = load_dataset(DataSource(path=str(data)), model.tokenizer, seq_tokens=64).examples
        model.set_adapter(LoraAdapter({}))
        (batch,) = islice(iterate_batches(examples, seq_tokens=64, batch_tokens=64, seed=0), 1)
        sums.append((model.score(batch), model.features(batch)))
    (in_torch, hidden), (in_mlx, other) = sums
    assert in_torch.loss_sum == pytest.approx(in_mlx.loss_sum, rel=1e-5)
    assert in_torch[2:] == in_mlx[2:]
    np.testing.assert_allclose(hidden, other, atol=1e-5)
