# ruff: noqa: E402 - OpenBLAS goes before MLX
"""The MLX backend over full and packed bases, and both ways of laying out a batch."""

import asyncio
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("mlx_lm", reason="needs the mlx extra")

from edge.backends.mlx import load_openblas

load_openblas()
import mlx.core as mx
import mlx_lm
from mlx.utils import tree_flatten
from mlx_lm.models import granite, qwen

from converters.adapter import Factors, LoraAdapter
from converters.bases.read import read_base
from converters.bases.targets import match_targets
from converters.errors import BaseModelError
from converters.formats.canonical import save_adapter
from converters.masking import train_mask
from edge.backends.mlx import layers as mlx_layers
from edge.backends.mlx import model as backend
from edge.backends.parameters import to_vector
from edge.errors import OutOfMemory, UnsupportedRecipe
from edge.training.data.source import DataSource
from edge.training.packing import Example, build_batch
from edge.training.plan import Plan
from edge.training.requests import Training
from edge.training.worker.supervisor import Worker

pytestmark = pytest.mark.mlx
SMALL = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GRANITE = {
    "num_key_value_heads": 2,
    "logits_scaling": 3.0,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_theta": 10000.0,
}
LENGTHS = (9, 5, 14, 3, 7)


@pytest.fixture(scope="module")
def model(llama_base):
    return backend.load_model(llama_base, precision="float32")


@pytest.fixture(scope="module")
def packed():
    random = np.random.default_rng(0)
    examples = [
        Example(random.integers(2, 250, length).astype(np.int32), np.arange(length) >= length // 2)
        for length in LENGTHS
    ]
    return build_batch(examples)


def adapter_for(model):
    random = np.random.default_rng(1)
    modules = match_targets(model.card.modules, ["q_proj", "v_proj"])
    return LoraAdapter(
        {
            name: Factors(
                random.normal(0, num_in**-0.5, (4, num_in)).astype(np.float32),
                random.normal(0, 0.1, (num_out, 4)).astype(np.float32),
                1.5,
            )
            for name, (num_in, num_out) in modules.items()
        }
    )


def masked(adapter):
    return train_mask(adapter, "b", 2)


def of(bare, model):
    """A model of random weights, made here, with the tokenizer of another."""
    mx.random.seed(0)
    return backend.MlxModel(
        bare, model.tokenizer, SMALL | {"max_position_embeddings": 64}, name="bare", is_compiling=False
    )


def train(model, batch, *, num_steps=10, lr=0.01, **options):
    model.set_adapter(adapter_for(model))
    model.begin(weight_decay=0.01, clip_norm=1.0, **options)
    return [model.step([batch], lr) for _ in range(num_steps)]


def test_packed_rows_and_rows_of_one_example_give_the_same_losses(model, packed, monkeypatch):
    apart = train(model, packed)
    score = model.score(packed)
    assert model.forward.packs_exactly()
    monkeypatch.setattr(model.forward, "is_packing", True)
    assert train(model, packed) == pytest.approx(apart, abs=1e-4)
    assert model.score(packed).loss_sum == pytest.approx(score.loss_sum, rel=1e-4)


def test_shapes_filled_up_for_compiling_give_the_same_losses(model, packed, monkeypatch):
    exact = train(model, packed)
    monkeypatch.setattr(model.forward, "is_compiling", True)
    assert train(model, packed) == pytest.approx(exact, abs=1e-5)


def test_the_pull_is_the_same_in_packed_rows_and_shapes_filled_up(model, packed, monkeypatch):
    exact = train(model, packed, pull=5.0)
    assert exact != pytest.approx(train(model, packed), abs=1e-3)
    for flag in ("is_compiling", "is_packing"):
        monkeypatch.setattr(model.forward, flag, True)
        assert train(model, packed, pull=5.0) == pytest.approx(exact, abs=1e-4)


def test_the_pull_works_where_logits_are_scaled(model, packed):
    args = granite.ModelArgs.from_dict({"model_type": "granite", **SMALL, **GRANITE})
    scaled = of(granite.Model(args), model)
    assert not scaled.forward.has_plain_head
    trained = adapter_for(scaled)
    scaled.set_adapter(trained)
    snapshot, (loss, task), moved = scaled.snapshot(), scaled.gradient([packed]), scaled.features(packed)
    scaled.set_adapter(LoraAdapter({name: f._replace(b=0 * f.b) for name, f in trained}))
    away = moved - scaled.features(packed)
    scaled.begin(weight_decay=0.0, clip_norm=0.0, pull=0.5)
    scaled.restore(snapshot)
    pulled = scaled.pull_back(packed, 2 * 0.5 / len(away) * away)
    assert scaled.step([packed], 0.0) == pytest.approx(loss, abs=1e-6)
    expected = to_vector(task) + to_vector(pulled)
    first = scaled.snapshot()["first"]  # a tenth of the gradient after one step
    np.testing.assert_allclose(10 * first, expected, atol=1e-4 * np.abs(expected).max())


def test_a_base_that_does_not_show_its_hidden_states_says_so_at_the_beginning(model, packed):
    args = qwen.ModelArgs.from_dict({"model_type": "qwen", **SMALL, "kv_channels": 8})
    hiding = of(qwen.Model(args), model)
    hiding.set_adapter(LoraAdapter({}))
    hiding.begin(weight_decay=0.0, clip_norm=1.0)
    hiding.step([packed], 0.01)
    with pytest.raises(UnsupportedRecipe, match=r"does not show its hidden states.*choose backend torch"):
        hiding.begin(weight_decay=0.0, clip_norm=1.0, pull=0.1)


def test_a_device_that_cannot_follow_the_recipe_fails_its_task_by_that_name(llama_base, model, tmp_path):
    config = {"model_type": "qwen", **SMALL, "kv_channels": 8, "max_position_embeddings": 64}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama_base / name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(qwen.Model(qwen.ModelArgs.from_dict(config)).parameters()))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": "turn the light on"}))
    save_adapter(LoraAdapter({}), tmp_path / "begin.safetensors")
    task = Training(
        adapter=str(tmp_path / "begin.safetensors"),
        data=DataSource(path=str(tmp_path / "data.jsonl")),
        plan=Plan(steps=1, pull=0.5, seq_tokens=32, batch_tokens=32),
        folder=str(tmp_path / "task"),
    )

    async def train():
        async with Worker(tmp_path, "mlx") as worker:
            await worker.train(task)

    with pytest.raises(UnsupportedRecipe, match="does not show its hidden states"):
        asyncio.run(train())


@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles for the processor with g++")
def test_a_compiled_step_is_the_same_step(model, packed):
    runs = [{}, {"pull": 1.0, "mask": masked(adapter_for(model))}]
    plain = [train(model, packed, num_steps=3, **options) for options in runs]
    mx.enable_compile()
    try:
        for options, losses in zip(runs, plain, strict=True):
            assert train(model, packed, num_steps=3, **options) == pytest.approx(losses, abs=1e-5)
    finally:
        mx.disable_compile()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_packed_base_trains(llama_base, model, packed, tmp_path, bits):
    folder = tmp_path / "packed"
    mlx_lm.convert(str(llama_base), str(folder), quantize=True, q_bits=bits, q_group_size=32)
    small = backend.load_model(folder, precision="float32")
    assert small.card.modules == model.card.modules
    assert small.card.num_parameters == model.card.num_parameters
    losses = train(small, packed, lr=0.02)
    assert losses[-1] < 0.9 * losses[0]
    assert losses[0] == pytest.approx(train(model, packed, num_steps=1)[0], abs={4: 0.5, 8: 0.05}[bits])


def test_the_modules_are_those_of_the_weights_on_disk(llama_base, model):
    expected = read_base(llama_base).modules
    assert dict(model.card.modules) == {name: shape for name, shape in expected.items() if name != "lm_head"}


def test_clipping_bounds_the_gradient_for_adamws_moments(model, packed):
    model.set_adapter(adapter_for(model))
    model.begin(weight_decay=0.0, clip_norm=0.01)
    model.step([packed], 0.0)
    first = model.snapshot()["first"]  # a tenth of the gradient after one step
    assert np.linalg.norm(first) == pytest.approx(0.001, rel=1e-4)


def test_bfloat16_follows_float32(llama_base, model, packed):
    small = backend.load_model(llama_base, precision="bfloat16")
    assert train(small, packed) == pytest.approx(train(model, packed), rel=0.03)


def test_memory_that_cannot_be_had_is_its_own_error():
    # As Metal says it; on a processor MLX does not look, and the process ends.
    with pytest.raises(OutOfMemory, match="backend mlx"), mlx_layers.mapped_errors():
        raise RuntimeError(
            "[metal::malloc] Attempting to allocate 68719476736 bytes which is greater than ..."
        )
    with pytest.raises(ValueError, match="broadcast"), mlx_layers.mapped_errors():
        mx.zeros((2,)) + mx.zeros((3,))


def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(BaseModelError, match="mlx-lm cannot load it") as caught:
        backend.load_model(tmp_path)
    assert "\n" not in str(caught.value)
