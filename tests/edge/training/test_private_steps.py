import hashlib
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from converters.adapter import LoraAdapter
from converters.arithmetic import subtract
from converters.formats.canonical import load_adapter
from converters.masking import train_mask
from edge.errors import ConfigError
from edge.privacy.clipping import exact_norm
from edge.training.packing import iterate_once
from edge.training.plan import Plan
from edge.training.private_steps import PrivateSteps, one_by_one
from edge.training.trainer import train

PLAN = Plan(
    steps=6,
    lr=0.02,
    seq_tokens=64,
    batch_tokens=128,
    example_clip_norm=0.05,
    example_noise=0.0,
    clip_norm=9.0,
)


class Recorder:
    """A model that learns nothing and keeps the gradients that it was to descend along."""

    def __init__(self, model):
        self.adapter, self.gradient = model.adapter, model.gradient
        self.descended: list[LoraAdapter] = []

    def descend(self, gradient, lr):
        self.descended.append(gradient)


def seeded(size):
    return hashlib.shake_256(b"seed").digest(size)


def silent(size):
    return bytes(size)


@pytest.fixture
def examples(dataset):
    (batch,) = iterate_once(dataset.examples, seq_tokens=64, batch_tokens=512)
    return one_by_one(batch)


def summed(model, adapter, examples, *, noise=0.0, clip=0.05, mask=None, draw=seeded):
    """The sum of gradients that a step divides by the number of examples."""
    model.set_adapter(adapter)
    recorder = Recorder(model)
    plan = structs.replace(PLAN, example_clip_norm=clip, example_noise=noise)
    PrivateSteps(recorder, plan, mask, draw).step(examples, 0.1)
    (mean,) = recorder.descended
    return mean, len(examples)


def test_one_example_moves_the_sum_by_the_bound_at_most(model, adapter, examples):
    for clip in (1e-3, 0.05):
        mean, count = summed(model, adapter, examples, clip=clip)
        silenced = examples[0]._replace(weights=np.zeros_like(examples[0].weights))
        without, _ = summed(model, adapter, [silenced, *examples[1:]], clip=clip)
        assert exact_norm(subtract(mean, without)) * count <= clip * (1 + 1e-5)


def test_where_nothing_is_clipped_the_step_is_along_the_mean_of_the_examples_gradients(
    model, adapter, examples
):
    mean, count = summed(model, adapter, examples, clip=1e6)
    expected = {name: np.zeros_like(f.b) for name, f in adapter}
    for example in examples:
        for name, factors in model.gradient([example])[1]:
            expected[name] += factors.b / count
    for name, factors in mean:
        np.testing.assert_allclose(factors.b, expected[name], atol=1e-6)


def test_noise_goes_on_the_sum_and_has_the_asked_deviation(model, adapter, examples):
    quiet, count = summed(model, adapter, examples, noise=0.0)
    loud, _ = summed(model, adapter, examples, noise=3.0)
    difference = np.concatenate([entry.ravel() for _, f in subtract(loud, quiet) for entry in (f.a, f.b)])
    # sigma C / n, over some thousand entries
    assert difference.std() * count == pytest.approx(3.0 * 0.05, rel=6 / np.sqrt(difference.size))


def test_what_is_not_trained_gets_no_noise_and_does_not_count_in_the_norm(model, adapter, examples):
    mask = train_mask(adapter, "b", 0)
    mean, _ = summed(model, adapter, examples, noise=1.0, mask=mask)
    assert not any(f.a.any() for _, f in mean)
    assert all(f.b.all() for _, f in mean)


def test_a_training_with_noise_learns_and_two_of_them_differ(model, dataset, adapter, tmp_path):
    plan = structs.replace(PLAN, steps=20, example_clip_norm=0.5, example_noise=0.01)
    found = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        result = train(model, dataset, plan, adapter, tmp_path / name)
        assert result.loss_after < result.loss_before
        found.append(load_adapter(Path(result.adapter)))
    assert found[0] != found[1]


def test_without_noise_a_training_is_the_same_however_it_was_split(model, dataset, adapter, tmp_path):
    found = []
    for size in (0, 64):
        (tmp_path / f"{size}").mkdir()
        plan = structs.replace(PLAN, micro_batch_tokens=size)
        found.append(train(model, dataset, plan, adapter, tmp_path / f"{size}", draw=silent).losses)
    assert found[0] == found[1]


def test_a_pull_that_draws_examples_together_is_refused():
    with pytest.raises(ConfigError, match="pull draws examples together"):
        Plan(steps=1, example_clip_norm=1.0, pull=0.5)


def test_a_batch_without_a_label_takes_a_step_of_noise_alone(model, adapter, examples):
    unlabelled = [one._replace(weights=np.zeros_like(one.weights)) for one in examples]
    mean, _ = summed(model, adapter, unlabelled, noise=1.0)
    assert exact_norm(mean) > 0
