"""Held-out data is scored while training, and changes nothing of it."""

import itertools
from pathlib import Path

import pytest
from msgspec import structs

from converters.formats.canonical import load_adapter
from edge.backends.toy import load, make_toy_base
from edge.training.plan import Plan
from edge.training.requests import Evaluation, Validation
from edge.training.scoring import score_dataset
from edge.training.trainer import train
from edge.training.validation import NUM_SCORES, Validator

PLAN = Plan(steps=12, lr=0.02, seq_tokens=64, batch_tokens=128, checkpoint_every_s=0.0)
COUNTS = {"num_labels": 1, "num_examples": 1, "num_truncated": 0}
SCORE = Evaluation(loss=1.0, accuracy=0.5, exact_match=0.0, precision="float32", **COUNTS)


@pytest.fixture
def run(model, dataset, adapter, tmp_path):
    def run(
        *, folder="task", every=0, plan=PLAN, model=model, valid=dataset, tell=lambda _: None, **settings
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        validator = Validator(valid, plan, every=every, tell=tell) if valid else None
        return train(model, dataset, plan, adapter, tmp_path / folder, validator=validator, **settings)

    return run


def steps(result):
    return [one.step for one in result.validations]


def final(result):
    return load_adapter(Path(result.adapter))


def test_scores_are_those_of_the_adapter_at_that_step(run, model, dataset, adapter):
    told = []
    result = run(every=5, tell=told.append)
    assert steps(result) == [0, 5, 10, 12]
    assert tuple(told) == result.validations
    for trained, found in ((adapter, result.validations[0]), (final(result), result.validations[-1])):
        model.set_adapter(trained)
        assert found.evaluation == score_dataset(model, dataset, seq_tokens=64, batch_tokens=128)
    assert result.validations[-1].evaluation.loss < result.validations[0].evaluation.loss


def test_training_is_the_same_with_scores_and_without(run):
    scored, plain = run(folder="scored", every=1), run(folder="plain", valid=None)
    assert scored.losses == plain.losses
    assert final(scored) == final(plain)
    assert plain.validations == ()


@pytest.mark.parametrize("at", [1, 4, 5, 11, 12])
def test_a_run_that_is_stopped_and_resumed_has_the_same_scores(run, at):
    whole = run(folder="whole", every=4)
    count = itertools.count(1)
    stopped = run(every=4, should_stop=lambda: next(count) == at)
    resumed = run(every=4)
    assert steps(stopped) == [step for step in (0, 4, 8, 12) if step < at or step == at == 12]
    found, wanted = ([structs.replace(v, seconds=0.0) for v in r.validations] for r in (resumed, whole))
    assert found == wanted
    assert final(resumed) == final(whole)


def test_scores_on_other_data_are_not_mixed_with_these(run, dataset):
    count = itertools.count(1)
    run(every=2, should_stop=lambda: next(count) == 5)
    other = dataset._replace(digest="0" * 64)
    assert steps(run(every=2, valid=other)) == [5, 6, 8, 10, 12]


def test_scoring_takes_as_much_memory_as_there_is(tmp_path, run, dataset):
    small = load(make_toy_base(tmp_path / "small", seed=0, memory_tokens=64))
    result = run(model=small, every=6)
    assert steps(result) == [0, 6, 12]


def due(plan, dataset, num_steps, *, seconds_a_step=0.0, every=0):
    validator, done = Validator(dataset, plan, every=every), []
    for step in range(num_steps + 1):
        seconds = step * seconds_a_step
        if validator.is_due(done, step, seconds, plan.steps, is_complete=step == num_steps):
            done.append(Validation(step=step, seconds=seconds, evaluation=SCORE))
    return [one.step for one in done]


def test_without_a_number_there_are_about_ten_scores(dataset):
    assert due(Plan(steps=200, batch_tokens=2048), dataset, 200) == list(range(0, 201, 20))
    timed = due(Plan(seconds=10.0, batch_tokens=2048), dataset, 57, seconds_a_step=0.18)
    assert len(timed) in (NUM_SCORES + 1, NUM_SCORES + 2)
    assert due(Plan(steps=3, batch_tokens=2048), dataset, 3) == [0, 1, 2, 3]


def test_much_held_out_data_is_scored_less_often(dataset):
    tokens = sum(len(example.tokens) for example in dataset.examples)
    plan = Plan(steps=20, seq_tokens=16, batch_tokens=tokens // 7)
    assert due(plan, dataset, 20) == [0, 8, 16, 20]
    assert due(plan, dataset, 20, every=5) == [0, 5, 10, 15, 20]
