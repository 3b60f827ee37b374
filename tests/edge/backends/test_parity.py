"""Backends train alike: the same base, adapter, data order and plan give the same losses."""

import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from converters.adapter import LoraAdapter, initial_adapter
from converters.bases.targets import match_targets
from edge.backends import load_model
from edge.backends.contract import Sampling
from edge.training.data.dataset import load_dataset
from edge.training.data.source import DataSource
from edge.training.packing import iterate_batches

pytestmark = pytest.mark.torch
pytest.importorskip("peft", reason="needs the torch extra")
ASSETS = Path(os.environ.get("TUNEFLEET_ASSETS", Path(__file__).parents[4] / "shared" / "assets"))
NUM_STEPS = 50
BASES = {
    "torch": "models/stories260K",
    "mlx": "models/stories260K",
    "llama_cpp": "models/stories260K-F32.gguf",
}
OTHERS = [
    pytest.param("mlx", marks=pytest.mark.mlx),
    pytest.param("llama_cpp", marks=pytest.mark.llama),
]
LIBRARIES = {"mlx": "mlx_lm", "llama_cpp": "llama_cpp"}


@pytest.fixture(scope="module")
def dolly(tmp_path_factory):
    """200 short instructions."""
    rows = json.loads((ASSETS / "data/dolly15k/local_training_5.json").read_text())
    short = [row for row in rows if len(row["instruction"]) + len(row["response"]) < 400][:200]
    pairs = [{"prompt": f"{row['instruction']}\n", "completion": row["response"]} for row in short]
    path = tmp_path_factory.mktemp("dolly") / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, pairs)))
    return path


@pytest.fixture(scope="module")
def in_torch(dolly):
    return train(load_model("torch", ASSETS / BASES["torch"]), dolly)


def train(model, data):
    examples = load_dataset(DataSource(path=str(data)), model.tokenizer, seq_tokens=256).examples
    modules = match_targets(model.card.modules, ["q_proj", "v_proj"])
    model.set_adapter(initial_adapter(modules, rank=8, scale=2.0, seed=0))
    model.begin(weight_decay=0.01, clip_norm=1.0)
    batches = iterate_batches(examples, seq_tokens=256, batch_tokens=512, seed=0)
    losses = [model.step([batch], 3e-3) for batch in islice(batches, NUM_STEPS)]
    return np.array(losses), model


@pytest.mark.assets
@pytest.mark.skipif(not ASSETS.exists(), reason="needs ../shared/assets or TUNEFLEET_ASSETS")
@pytest.mark.parametrize("name", OTHERS)
def test_fifty_steps_of_stories260k_give_the_same_losses(name, in_torch, dolly, record_property):
    pytest.importorskip(LIBRARIES[name])
    (theirs, model), (ours, other) = in_torch, train(load_model(name, ASSETS / BASES[name]), dolly)
    difference = float(np.abs(theirs - ours).max())
    record_property("largest difference of the loss", difference)
    print(f"loss {theirs[0]:.4f} to {theirs[-1]:.4f}; torch and {name} differ by at most {difference:.1e}")
    assert theirs[-10:].mean() < theirs[:10].mean()
    assert difference < 1e-4
    for module, factors in model.adapter():
        np.testing.assert_allclose(other.adapter().modules[module].b, factors.b, atol=2e-3)


@pytest.mark.assets
@pytest.mark.llama
@pytest.mark.skipif(not ASSETS.exists(), reason="needs ../shared/assets or TUNEFLEET_ASSETS")
@pytest.mark.parametrize("quant", ["q8_0", "q4_0"])
def test_fifty_steps_on_quantised_weights_are_near_torchs(quant, dolly, llama, load_dequantised, tmp_path):
    # llama.cpp rounds activations to 8 bits, and AdamW makes steps of full size of the least differences.
    path = llama.quantize(ASSETS / BASES["llama_cpp"], tmp_path / "small.gguf", quant)
    theirs, _ = train(load_dequantised(ASSETS / BASES["torch"], path), dolly)
    ours, _ = train(load_model("llama_cpp", path), dolly)
    difference = float(np.abs(theirs - ours).max())
    print(f"{quant}: loss {ours[0]:.4f} to {ours[-1]:.4f}; at most {difference:.1e} from torch")
    assert ours[-10:].mean() < ours[:10].mean()
    assert difference < 5e-2


@pytest.mark.parametrize("name", OTHERS)
def test_backends_agree_before_training(name, llama_base, request, tmp_path):
    pytest.importorskip(LIBRARIES[name])
    base = llama_base if name == "mlx" else request.getfixturevalue("llama_gguf")
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "turn on ", "completion": "the light in the kitchen"}))
    sums = []
    for model in (load_model("torch", llama_base), load_model(name, base)):
        examples = load_dataset(DataSource(path=str(data)), model.tokenizer, seq_tokens=64).examples
        model.set_adapter(LoraAdapter({}))
        (batch,) = islice(iterate_batches(examples, seq_tokens=64, batch_tokens=64, seed=0), 1)
        sums.append((model.score(batch), model.features(batch)))
    (in_torch, hidden), (in_other, other) = sums
    assert in_torch.loss_sum == pytest.approx(in_other.loss_sum, rel=1e-5)
    assert in_torch[2:] == in_other[2:]
    np.testing.assert_allclose(hidden, other, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_backends_have_the_same_gradients_and_pull_alike(name, llama_base, request, tmp_path):
    pytest.importorskip(LIBRARIES[name])
    base = llama_base if name == "mlx" else request.getfixturevalue("llama_gguf")
    data = tmp_path / "data.jsonl"
    texts = ("the light in the kitchen", "it", "everything but the oven")
    data.write_text("\n".join(json.dumps({"prompt": "turn on ", "completion": text}) for text in texts))
    found = []
    for model in (load_model("torch", llama_base, precision="float32"), load_model(name, base)):
        examples = load_dataset(DataSource(path=str(data)), model.tokenizer, seq_tokens=64).examples
        (batch,) = islice(iterate_batches(examples, seq_tokens=64, batch_tokens=128, seed=0), 1)
        modules = match_targets(model.card.modules, ["q_proj", "v_proj", "down_proj"])
        model.set_adapter(initial_adapter(modules, rank=4, scale=2.0, seed=0))
        model.begin(weight_decay=0.0, clip_norm=1.0, pull=0.5)
        losses = [model.step([batch], 0.01) for _ in range(5)]
        loss, gradient = model.gradient([batch])
        features = model.features(batch)
        found.append(([*losses, loss], features, gradient, model.pull_back(batch, features)))
    (theirs, hidden, *in_torch), (ours, other, *in_other) = found
    assert ours == pytest.approx(theirs, abs=1e-5)
    np.testing.assert_allclose(other, hidden, atol=1e-4)
    for expected, gradient in zip(in_torch, in_other, strict=True):
        for module, factors in expected:
            for theirs, ours in zip(factors[:2], gradient.modules[module][:2], strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())


@pytest.mark.parametrize("name", OTHERS)
def test_backends_continue_alike(name, llama_base, request):
    pytest.importorskip(LIBRARIES[name])
    base = llama_base if name == "mlx" else request.getfixturevalue("llama_gguf")
    found = []
    for model in (load_model("torch", llama_base), load_model(name, base)):
        modules = match_targets(model.card.modules, ["q_proj", "v_proj", "down_proj"])
        adapter = initial_adapter(modules, rank=4, scale=2.0, seed=0)
        raised = {module: factors._replace(b=factors.b + np.float32(0.1)) for module, factors in adapter}
        model.set_adapter(LoraAdapter(raised))
        prompts = [[0, 5, 6, 7], [0, 9], [0, *range(20, 60)], [0] * 120]
        found.append(model.generate(prompts, Sampling(max_tokens=20)))
    assert found[0] == found[1]
    assert any(found[0])
