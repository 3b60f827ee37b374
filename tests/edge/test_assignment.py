import hashlib

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from converters.canonical import save_adapter
from edge.assignment import Assignment, make_plan, make_update, task_seed
from edge.errors import ConfigError
from edge.protocol.codec import decode_adapter
from edge.protocol.messages import Recipe
from edge.training.task import Result


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
    task = Assignment(make_manifest(version=4, encoding="int8"), attempt=2)
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
        task_seed(device, Assignment(make_manifest(version=version), attempt))
        for device in ("lamp", "fan")
        for version in (0, 1)
        for attempt in (0, 1)
    }
    assert len(seeds) == 8
    again = task_seed("lamp", Assignment(make_manifest(version=1, tier="r8"), 0))
    assert again in seeds
    assert 0 <= min(seeds) <= max(seeds) < 2**31


def test_a_recipe_bound_by_steps_ignores_its_seconds():
    plan = make_plan(Recipe(steps=5, seconds=60.0, lr=0.01), 7, 256, 30.0)
    assert (plan.steps, plan.seconds, plan.lr) == (5, 0.0, 0.01)
    assert (plan.seed, plan.micro_batch_tokens, plan.checkpoint_every_s) == (7, 256, 30.0)
    assert make_plan(Recipe(steps=0, seconds=60.0), 7, 0, 30.0).seconds == 60.0


def test_a_recipe_that_cannot_be_followed_is_told():
    with pytest.raises(ConfigError, match="exactly one of steps, seconds, epochs"):
        make_plan(Recipe(steps=0), 0, 0, 1.0)
