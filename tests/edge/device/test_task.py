import hashlib

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from converters.formats.canonical import save_adapter
from converters.masking import leading_rows
from edge.device.task import Task, make_plan, make_update, start_adapter, task_seed
from edge.errors import ConfigError
from edge.privacy.clipping import exact_norm
from edge.privacy.noise import SYSTEM
from edge.privacy.terms import Terms
from edge.protocol.codec import decode_adapter
from edge.protocol.messages import Recipe
from edge.protocol.sealing import SEALED_BYTES, Context, open_update, sealing_public_key
from edge.training.requests import Result


def adapter(value):
    a, b = np.full((2, 64), value, np.float32), np.full((64, 2), value, np.float32)
    return LoraAdapter({"q_proj": Factors(a, b, 2.0)})


def result(path):
    return Result(
        adapter=str(path),
        num_examples=6,
        num_tokens=60,
        num_truncated=0,
        num_steps=3,
        seconds=1.5,
        loss_before=2.0,
        loss_after=1.0,
        losses=(2.0, 1.5, 1.0),
        micro_batch_tokens=0,
        is_complete=True,
    )


def test_an_update_is_trained_minus_dispatched_plus_what_was_left_over(tmp_path, make_manifest):
    save_adapter(adapter(1.0), tmp_path / "dispatched")
    save_adapter(adapter(1.5), tmp_path / "trained")
    task = Task(make_manifest(version=4, encoding="int8"), attempt=2)
    update = make_update("lamp", task, tmp_path / "dispatched", result(tmp_path / "trained"), adapter(0.25))
    sent = decode_adapter(update.payload, like=adapter(1.0))
    # 1.5 - 1.0 + 0.25 = 0.75; what the encoding rounds away is the new residual.
    whole = sent.modules["q_proj"].a + update.residual.modules["q_proj"].a
    assert np.allclose(whole, 0.75, atol=1e-7)
    header = update.header
    assert header.sha256 == hashlib.sha256(update.payload).hexdigest()
    assert (header.base_version, header.attempt, header.tier, header.encoding) == (4, 2, "r4", "int8")
    assert (header.num_examples, header.num_steps, header.loss_after) == (6, 3, 1.0)


def test_a_repeat_has_the_same_seed_and_everything_else_another(make_manifest):
    seeds = {
        task_seed(device, Task(make_manifest(version=version), attempt))
        for device in ("lamp", "fan")
        for version in (0, 1)
        for attempt in (0, 1)
    }
    assert len(seeds) == 8
    again = task_seed("lamp", Task(make_manifest(version=1, tier="r8"), 0))
    assert again in seeds
    assert 0 <= min(seeds) <= max(seeds) < 2**31


def test_a_recipe_bound_by_steps_ignores_its_seconds():
    plan = make_plan(Recipe(steps=5, seconds=60.0, lr=0.01), 7, 256, 30.0)
    assert (plan.steps, plan.seconds, plan.lr) == (5, 0.0, 0.01)
    assert (plan.seed, plan.micro_batch_tokens, plan.checkpoint_every_s) == (7, 256, 30.0)
    assert make_plan(Recipe(steps=0, seconds=60.0), 7, 0, 30.0).seconds == 60.0


def update_of(recipe, tmp_path, make_manifest, trained, residual=None, draw=SYSTEM, **asked):
    save_adapter(adapter(1.0), tmp_path / "dispatched")
    save_adapter(trained, tmp_path / "trained")
    task = Task(make_manifest(version=4, recipe=recipe, **{"encoding": "f32"} | asked), attempt=0)
    return make_update("lamp", task, tmp_path / "dispatched", result(tmp_path / "trained"), residual, draw)


def test_a_recipe_says_how_the_features_pull_and_what_is_trained():
    plan = make_plan(Recipe(steps=5, pull=0.5, trains="b", train_rank=4), 0, 0, 1.0)
    assert (plan.pull, plan.trains, plan.train_rank) == (0.5, "b", 4)


def test_where_one_factor_is_trained_only_that_one_is_sent(tmp_path, make_manifest):
    whole = update_of(Recipe(steps=1), tmp_path, make_manifest, adapter(1.5))
    recipe = Recipe(steps=1, trains="b")
    half = update_of(recipe, tmp_path, make_manifest, adapter(1.5), residual=adapter(0.25))
    sent = decode_adapter(half.payload, like=adapter(1.0)).modules["q_proj"]
    assert not sent.a.any()
    assert np.all(sent.b == 0.75)  # 1.5 - 1.0, and 0.25 left over
    assert len(half.payload) < 0.6 * len(whole.payload)
    assert half.personal is None


def test_of_rows_that_nobody_trains_nothing_is_sent(tmp_path, make_manifest):
    update = update_of(Recipe(steps=1, train_rank=1), tmp_path, make_manifest, adapter(1.5), adapter(0.25))
    like = leading_rows(adapter(1.0), 1)
    assert (decode_adapter(update.payload, like=like).modules["q_proj"].a == 0.5).all()


def test_a_device_keeps_its_own_b_and_sends_what_a_has_moved_by(tmp_path, make_manifest):
    recipe = Recipe(steps=1, keeps="b")
    update = update_of(recipe, tmp_path, make_manifest, adapter(1.5))
    sent = decode_adapter(update.payload, like=adapter(1.0)).modules["q_proj"]
    assert np.all(sent.a == 0.5)
    assert not sent.b.any()
    start = start_adapter(recipe, adapter(3.0), update.personal).modules["q_proj"]
    assert np.all(start.a == 3.0)
    assert np.all(start.b == 1.5)


def test_a_b_of_another_shape_is_forgotten():
    recipe = Recipe(steps=1, keeps="b")
    wide = LoraAdapter({"q_proj": Factors(np.ones((3, 64), "f4"), np.ones((64, 3), "f4"), 2.0)})
    assert start_adapter(recipe, adapter(3.0), wide) == adapter(3.0)
    assert start_adapter(recipe, adapter(3.0), None) == adapter(3.0)
    assert start_adapter(Recipe(steps=1), adapter(3.0), adapter(1.0)) == adapter(3.0)


def test_a_recipe_by_which_nothing_would_be_sent_is_refused():
    with pytest.raises(ConfigError, match="keeps b and trains nothing but b"):
        make_plan(Recipe(steps=1, keeps="b", trains="b"), 0, 0, 1.0)


def test_a_recipe_that_cannot_be_followed_is_told():
    with pytest.raises(ConfigError, match="exactly one of steps, seconds, epochs"):
        make_plan(Recipe(steps=0), 0, 0, 1.0)


def seeded(size):
    return hashlib.shake_256(b"seed").digest(size)


def private(tmp_path, make_manifest, terms, *, residual=None, trained=1.5, **asked):
    """An update of an adapter of ones that training moved, made under terms of privacy."""
    recipe, moved = asked.pop("recipe", Recipe(steps=5)), adapter(trained)
    draw = asked.pop("draw", seeded)
    return update_of(recipe, tmp_path, make_manifest, moved, residual, draw, privacy=terms, **asked)


def sent_by(update):
    return decode_adapter(update.payload, like=adapter(1.0))


def test_a_device_that_only_clips_sends_the_bound_and_keeps_nothing_left_over(tmp_path, make_manifest):
    terms = Terms(unit="device", clip_norm=0.25, at="coordinator")
    update = private(tmp_path, make_manifest, terms, residual=adapter(9.0), encoding="int4")
    assert exact_norm(sent_by(update)) == pytest.approx(0.25, rel=0.01)
    assert update.residual is None


def test_noise_is_added_before_the_encoding_and_what_that_leaves_over_is_of_the_noised_delta(
    tmp_path, make_manifest
):
    terms = Terms(unit="device", clip_norm=0.25, noise=2.0)
    whole = sent_by(private(tmp_path, make_manifest, terms)).modules["q_proj"]
    assert np.concatenate([whole.a.ravel(), whole.b.ravel()]).std() == pytest.approx(0.5, rel=0.2)
    rough = private(tmp_path, make_manifest, terms, encoding="int4")
    again = sent_by(rough).modules["q_proj"].a + rough.residual.modules["q_proj"].a
    np.testing.assert_allclose(again, whole.a, atol=1e-6)


def test_what_a_noised_update_left_over_is_added_behind_the_bound(tmp_path, make_manifest):
    terms = Terms(unit="device", clip_norm=0.25, noise=0.0)
    update = private(tmp_path, make_manifest, terms, residual=adapter(1.0))
    clipped = 0.25 / 16  # 256 entries, all moved by 0.5
    np.testing.assert_allclose(sent_by(update).modules["q_proj"].a, 1.0 + clipped, rtol=1e-6)


def test_each_update_has_noise_of_its_own_from_the_system(tmp_path, make_manifest):
    terms = Terms(unit="device")
    one, other = (private(tmp_path, make_manifest, terms, draw=SYSTEM) for _ in range(2))
    assert one.payload != other.payload
    assert one.header.update != other.header.update


def test_what_is_not_sent_gets_no_noise(tmp_path, make_manifest):
    update = private(tmp_path, make_manifest, Terms(unit="device"), recipe=Recipe(steps=1, trains="b"))
    assert not sent_by(update).modules["q_proj"].a.any()


@pytest.mark.parametrize("unit", ["device", "example"])
def test_nothing_exact_is_told_of_a_training_that_is_hidden(tmp_path, make_manifest, unit):
    header = private(tmp_path, make_manifest, Terms(unit=unit)).header
    assert (header.num_examples, header.num_tokens, header.num_steps) == (5, 5, 5)  # the recipe's own
    assert header.loss_before is header.loss_after is None


def test_a_sealed_update_tells_its_facts_to_the_coordinator_alone(tmp_path, make_manifest):
    plain = private(tmp_path, make_manifest, Terms())
    update = private(tmp_path, make_manifest, Terms(), seal=sealing_public_key(b"k" * 32))
    header = update.header
    assert header.is_sealed
    assert header.size_bytes == len(update.payload) == len(plain.payload) + SEALED_BYTES
    assert header.sha256 == hashlib.sha256(update.payload).hexdigest()
    assert (header.num_examples, header.seconds, header.loss_before) == (0, 0.0, None)
    opened = open_update(update.payload, b"k" * 32, Context("home", "lamp", 4, 0, "0" * 64))
    assert opened.delta == plain.payload
    assert (opened.facts.num_examples, opened.facts.loss_after) == (6, 1.0)


def test_examples_are_hidden_while_they_are_trained_on_and_the_delta_is_left_as_it_is(
    tmp_path, make_manifest
):
    terms = Terms(unit="example", clip_norm=0.25, noise=2.0)
    plan = make_plan(Recipe(steps=5, clip_norm=3.0), 0, 0, 1.0, terms)
    assert (plan.example_clip_norm, plan.example_noise) == (0.25, 2.0)
    assert make_plan(Recipe(steps=5), 0, 0, 1.0, Terms(unit="device")).example_clip_norm == 0.0
    assert np.all(sent_by(private(tmp_path, make_manifest, terms)).modules["q_proj"].a == 0.5)
