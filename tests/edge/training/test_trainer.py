import itertools
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from converters.formats.canonical import load_adapter
from edge.backends.toy import load, make_toy_base
from edge.errors import BackendError, OutOfMemory, StateError
from edge.training.checkpoint import FILE
from edge.training.plan import Plan
from edge.training.scoring import score_dataset
from edge.training.trainer import train

PLAN = Plan(steps=12, lr=0.02, seq_tokens=64, batch_tokens=128, schedule="cosine", warmup_steps=2)


@pytest.fixture
def run(model, dataset, adapter, tmp_path):
    def run(plan=PLAN, *, folder="task", model=model, dataset=dataset, **settings):
        (tmp_path / folder).mkdir(exist_ok=True)
        return train(model, dataset, plan, adapter, tmp_path / folder, **settings)

    return run


def final(result):
    return load_adapter(Path(result.adapter))


def test_a_run_takes_its_steps_and_lowers_the_loss(run):
    told = []
    result = run(on_progress=told.append)
    assert result.is_complete
    assert result.num_steps == 12
    assert result.loss_after < result.loss_before
    assert (result.loss_before, result.loss_after) == (result.losses[0], result.losses[-1])
    assert [progress.step for progress in told] == list(range(1, 13))
    assert [progress.loss for progress in told] == list(result.losses)


def test_the_same_run_gives_the_same_adapter(run):
    one, other = run(folder="one"), run(folder="other")
    assert one.losses == other.losses
    assert final(one) == final(other)


def test_epochs_visit_every_example_as_often(run, dataset):
    result = run(Plan(epochs=3, seq_tokens=64, batch_tokens=64))
    assert result.num_examples == 3 * len(dataset.examples)
    assert result.num_tokens == 3 * sum(len(example.tokens) - 1 for example in dataset.examples)


@pytest.mark.parametrize("at", [1, 5, 11])
def test_a_run_that_is_stopped_and_resumed_ends_like_one_that_was_not(run, at):
    whole = run(folder="whole")
    steps = itertools.count(1)
    stopped = run(should_stop=lambda: next(steps) == at)
    assert not stopped.is_complete
    assert stopped.num_steps == at
    resumed = run()
    assert resumed.is_complete
    assert resumed.losses == whole.losses
    assert final(resumed) == final(whole)


@pytest.mark.parametrize("every_s", [0.0, 3.0])
def test_a_run_that_breaks_off_goes_on_from_its_last_checkpoint(run, every_s):
    whole = run(folder="whole")
    plan = Plan(
        **{name: getattr(PLAN, name) for name in PLAN.__struct_fields__} | {"checkpoint_every_s": every_s}
    )
    ticks = itertools.count()

    def break_off(progress):
        if progress.step == 8:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(plan, on_progress=break_off, clock=lambda: float(next(ticks)))
    resumed = run(plan)
    assert resumed.losses == whole.losses
    assert final(resumed) == final(whole)


def test_a_finished_run_is_not_trained_again(run):
    first = run()
    told = []
    again = run(on_progress=told.append)
    assert told == []
    assert again == first


def test_a_plan_that_trains_b_leaves_a_as_it_was(run, adapter):
    plan = structs.replace(PLAN, trains="b", weight_decay=0.1)
    trained = final(run(plan))
    for name, factors in adapter:
        assert np.array_equal(trained.modules[name].a, factors.a)
        assert not np.array_equal(trained.modules[name].b, factors.b)


def test_a_plan_of_a_smaller_rank_leaves_the_rows_behind_it(run, adapter):
    trained = final(run(structs.replace(PLAN, train_rank=1)))
    for name, factors in adapter:
        assert np.array_equal(trained.modules[name].a[1:], factors.a[1:])
        assert not trained.modules[name].b[:, 1:].any()
        assert trained.modules[name].b[:, 0].any()


def test_a_pulled_run_that_is_stopped_again_and_again_gives_the_same_adapter(run):
    plan = structs.replace(PLAN, pull=1.0)
    whole = run(plan, folder="whole")
    stops = itertools.cycle([False, False, False, True])
    while not run(plan, should_stop=lambda: next(stops)).is_complete:
        pass
    assert final(run(plan)) == final(whole)
    assert final(whole) != final(run(folder="plain"))


def test_a_run_bounded_by_time_ends_with_the_step_that_reaches_it(run):
    now = itertools.count(0.0, 0.5)
    result = run(Plan(seconds=4.0, seq_tokens=64, batch_tokens=128), clock=lambda: next(now))
    assert result.is_complete
    assert result.seconds >= 4.0
    assert 1 < result.num_steps < 12


def test_a_slowed_run_sleeps_so_that_every_step_takes_as_many_times_as_long(run):
    now, naps = [0.0], []

    def clock():
        now[0] += 1.0
        return now[0]

    run(slowdown=4.0, clock=clock, sleep=naps.append)
    assert naps == [3.0] * 12


def test_when_memory_runs_out_the_step_is_split_until_it_fits(run, tmp_path, dataset):
    whole = run(folder="whole")
    small = load(make_toy_base(tmp_path / "small", seed=0, memory_tokens=64))
    told = []
    split = run(folder="split", model=small, on_progress=told.append)
    assert split.is_complete
    assert split.micro_batch_tokens == 64
    assert told[0].micro_batch_tokens == 64
    assert split.losses == pytest.approx(whole.losses, abs=1e-4)


def test_a_step_that_cannot_be_split_further_is_out_of_memory(run, tmp_path):
    small = load(make_toy_base(tmp_path / "small", seed=0, memory_tokens=8))
    with pytest.raises(OutOfMemory, match="lower seq_tokens"):
        run(model=small)


def test_a_resumed_run_keeps_the_size_that_fitted(run, tmp_path):
    small = load(make_toy_base(tmp_path / "small", seed=0, memory_tokens=64))
    run(model=small, should_stop=lambda: True)
    told = []
    run(on_progress=told.append)
    assert {progress.micro_batch_tokens for progress in told} == {64}


def test_a_loss_that_is_not_finite_is_an_error(run):
    with pytest.raises(BackendError, match="lower lr"), np.errstate(all="ignore"):
        run(Plan(steps=50, lr=1e38, seq_tokens=64, batch_tokens=128, clip_norm=0.0))


def test_another_plan_does_not_go_on_with_the_checkpoint(run):
    run(should_stop=lambda: True)
    with pytest.raises(StateError, match="another task"):
        run(Plan(steps=13))


def test_a_checkpoint_is_written_when_a_run_is_stopped(run, tmp_path):
    run(should_stop=lambda: True)
    assert (tmp_path / "task" / FILE).exists()


def test_scores_of_all_examples_are_added_up(model, dataset):
    small, large = (score_dataset(model, dataset, seq_tokens=64, batch_tokens=tokens) for tokens in (64, 512))
    assert small.loss == pytest.approx(large.loss)
    assert small.num_examples == large.num_examples == len(dataset.examples)
    assert small.num_labels == sum(int(example.labels.sum()) for example in dataset.examples)
    assert small.perplexity == pytest.approx(np.exp(small.loss))
