"""Of every backend: gradients, AlignFed's pull towards the dispatched features, and factors that stay."""

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from edge.errors import BackendError
from edge.training.packing import split_batch
from edge.training.private_steps import one_by_one

RATE = 0.01
DIRECTION = 0.02  # of a factor's norm


@pytest.fixture
def adapter(random_adapter):
    return random_adapter()


@pytest.fixture
def trained(adapter):
    """Another adapter of the same shapes, as training might have left it."""
    random = np.random.default_rng(5)
    return mapped(adapter, lambda m: m + (0.05 * random.normal(size=m.shape)).astype("f4"))


def mapped(adapter, function):
    return LoraAdapter({name: Factors(function(f.a), function(f.b), f.scale) for name, f in adapter})


def masks(adapter, a, b):
    """A mask with `a` in all of its a, and `b` in all of its b."""
    return LoraAdapter(
        {name: Factors(np.full_like(f.a, a), np.full_like(f.b, b), f.scale) for name, f in adapter}
    )


def begin(model, adapter, **options):
    model.set_adapter(adapter)
    model.begin(**{"weight_decay": 0.0, "clip_norm": 0.0, **options})


def shifted(adapter, name, kind, step):
    moved = adapter.modules[name]._replace(**{kind: getattr(adapter.modules[name], kind) + step})
    return LoraAdapter({**adapter.modules, name: moved})


def assert_slopes(adapter, gradient, value):
    """`gradient` is that of `value(adapter)`, along a direction uphill in every factor."""
    random = np.random.default_rng(2)
    assert gradient.modules.keys() == adapter.modules.keys()
    for name, factors in adapter:
        assert gradient.modules[name].scale == factors.scale
        for kind in "ab":
            factor, slope = getattr(factors, kind), getattr(gradient.modules[name], kind)
            step = np.sign(slope) + random.normal(size=factor.shape).astype("f4")
            step *= np.float32(DIRECTION * np.linalg.norm(factor) / np.linalg.norm(step))
            up, down = (value(shifted(adapter, name, kind, sign * step)) for sign in (1, -1))
            assert (step * slope).sum() == pytest.approx((up - down) / 2, rel=0.02, abs=1e-5), (name, kind)


def test_the_gradient_is_the_slope_of_the_loss(model, batch, adapter):
    def loss(moved):
        model.set_adapter(moved)
        score = model.score(batch)
        return score.loss_sum / score.weight_sum

    begin(model, adapter)
    found, gradient = model.gradient([batch])
    assert found == pytest.approx(loss(adapter), abs=1e-5)
    assert_slopes(adapter, gradient, loss)


def test_the_gradient_does_not_depend_on_the_split(model, batch, adapter):
    begin(model, adapter)
    loss, whole = model.gradient([batch])
    other, parts = model.gradient(split_batch(batch, 64))
    assert other == pytest.approx(loss, abs=1e-5)
    for name, factors in whole:
        np.testing.assert_allclose(parts.modules[name].a, factors.a, atol=1e-5)
        np.testing.assert_allclose(parts.modules[name].b, factors.b, atol=1e-5)


def test_pulling_back_gives_the_slope_of_the_features(model, batch, adapter):
    def value(moved):
        model.set_adapter(moved)
        return float((cotangent * model.features(batch)).sum(dtype=np.float64))

    model.set_adapter(adapter)
    shape = model.features(batch).shape
    cotangent = np.random.default_rng(3).normal(size=shape).astype("f4") / shape[0]
    assert_slopes(adapter, model.pull_back(batch, cotangent), value)


def test_gradients_leave_training_as_it_was(model, batch, adapter):
    losses = []
    for asks in (False, True):
        begin(model, adapter)
        losses.append([])
        for _ in range(3):
            losses[-1].append(model.step([batch], RATE))
            if asks:
                model.gradient([batch])
                model.pull_back(batch, model.features(batch))
    assert losses[0] == losses[1]


def resume(model, dispatched, trained, **options):
    """As a run that is resumed: its factors have moved on from what was dispatched."""
    begin(model, trained)
    snapshot = model.snapshot()
    begin(model, dispatched, **options)
    model.restore(snapshot)


def test_the_pull_adds_the_gradient_of_the_distance_to_the_dispatched_features(
    model, batch, adapter, trained
):
    # AdamW's first step is lr * sign(gradient), so its signs tell the gradient's.
    pull = 20.0
    model.set_adapter(adapter)
    fixed = model.features(batch)
    model.set_adapter(trained)
    away = model.features(batch) - fixed
    task_loss, task = model.gradient([batch])
    pulled = model.pull_back(batch, np.float32(2 * pull / len(away)) * away)
    resume(model, adapter, trained, pull=pull)
    assert model.step([batch], RATE) == pytest.approx(task_loss, abs=1e-5)
    turned = 0
    for name, factors in model.adapter():
        for kind in "ab":
            expected = getattr(task.modules[name], kind) + getattr(pulled.modules[name], kind)
            moved = getattr(factors, kind) - getattr(trained.modules[name], kind)
            is_clear = np.abs(expected) > 1e-3 * np.abs(expected).max()
            np.testing.assert_allclose(moved[is_clear], -RATE * np.sign(expected[is_clear]), atol=0.01 * RATE)
            turned += np.count_nonzero(np.sign(expected) != np.sign(getattr(task.modules[name], kind)))
    assert turned > 100  # the pull is strong enough to be seen


def test_the_pull_does_not_depend_on_the_split(model, batch, adapter, trained):
    losses, adapters = [], []
    for parts in ([batch], split_batch(batch, 64)):
        resume(model, adapter, trained, pull=0.5)
        losses.append([model.step(parts, 0.001) for _ in range(3)])
        adapters.append(model.adapter())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for name, factors in adapters[0]:
        np.testing.assert_allclose(adapters[1].modules[name].b, factors.b, atol=2e-4)


def test_the_pull_keeps_features_near(model, batch, adapter):
    distances = []
    for pull in (0.0, 10.0):
        begin(model, adapter, pull=pull)
        fixed = model.features(batch)
        for _ in range(10):
            model.step([batch], RATE)
        distances.append(np.square(model.features(batch) - fixed).sum(1).mean())
    assert distances[1] < 0.5 * distances[0]


def test_a_pulled_run_goes_on_bit_for_bit(model, batch, adapter):
    begin(model, adapter, pull=1.0)
    for _ in range(2):
        model.step([batch], RATE)
    snapshot = model.snapshot()
    losses = [model.step([batch], RATE) for _ in range(3)]
    begin(model, adapter, pull=1.0)
    model.restore(snapshot)
    assert [model.step([batch], RATE) for _ in range(3)] == losses


@pytest.mark.parametrize("frozen", ["a", "b"])
def test_masked_factors_never_change(model, batch, adapter, frozen):
    mask = masks(adapter, frozen != "a", frozen != "b")
    begin(model, adapter, weight_decay=0.1, mask=mask)
    losses = [model.step([batch], RATE) for _ in range(4)]
    assert losses[-1] < losses[0]
    for name, factors in model.adapter():
        for kind in "ab":
            is_same = np.array_equal(getattr(factors, kind), getattr(adapter.modules[name], kind))
            assert is_same == (kind == frozen)


def test_single_rows_can_be_masked(model, batch, adapter):
    mask = masks(adapter, 1, 1)
    for _, factors in mask:
        factors.a[2:], factors.b[:, 2:] = 0, 0
    begin(model, adapter, weight_decay=0.1, mask=mask)
    for _ in range(3):
        model.step([batch], RATE)
    for name, factors in model.adapter():
        before = adapter.modules[name]
        assert np.array_equal(factors.a[2:], before.a[2:])
        assert np.array_equal(factors.b[:, 2:], before.b[:, 2:])
        assert np.abs(factors.b[:, :2] - before.b[:, :2]).max() > RATE / 2


def test_a_mask_of_ones_changes_nothing(model, batch, adapter):
    adapters = []
    for mask in (None, masks(adapter, 1, 1)):
        begin(model, adapter, weight_decay=0.1, clip_norm=0.5, mask=mask)
        for _ in range(3):
            model.step([batch], RATE)
        adapters.append(model.adapter())
    assert adapters[0] == adapters[1]


def test_masked_gradients_do_not_count_in_the_clipped_norm(model, batch, random_adapter):
    adapter = random_adapter(b_size=1.0)  # so that the gradients of a are the larger ones
    begin(model, adapter)
    _, gradient = model.gradient([batch])
    norm_a, norm_b = (np.sqrt(sum(np.square(getattr(f, kind)).sum() for _, f in gradient)) for kind in "ab")
    assert norm_a > norm_b
    losses = []
    for clip_norm in (0.0, 1.2 * norm_b):
        begin(model, adapter, clip_norm=float(clip_norm), mask=masks(adapter, 0, 1))
        model.step([batch], 1e-4)
        losses.append(model.adapter())
    assert losses[0] == losses[1]


def test_training_anew_forgets_mask_and_pull(model, batch, adapter):
    losses = []
    for options in ({}, {"pull": 5.0, "mask": masks(adapter, 0, 0)}, {}):
        begin(model, adapter, **options)
        losses.append([model.step([batch], RATE) for _ in range(3)])
    assert losses[0] == losses[2]
    assert losses[1][0] == pytest.approx(losses[1][2], abs=1e-5)  # nothing was trained


def test_a_mask_that_does_not_fit_is_refused_with_all_its_faults(model, adapter):
    (first, one), (second, two), *others = masks(adapter, 1, 1)
    model.set_adapter(adapter)
    wrong = {first: one._replace(a=one.a + 1), "nowhere": two, **dict(others)}
    with pytest.raises(BackendError) as caught:
        model.begin(weight_decay=0.0, clip_norm=0.0, mask=LoraAdapter(wrong))
    for fault in (f"{first}: has entries other", f"{second} is missing", "nowhere: the adapter has no"):
        assert fault in str(caught.value)


def test_a_step_along_its_own_gradient_is_a_step(model, batch, adapter):
    for options in ({}, {"weight_decay": 0.1, "clip_norm": 0.01}, {"mask": masks(adapter, 0, 1)}):
        begin(model, adapter, **options)
        model.step([batch], RATE)
        stepped = model.adapter()
        begin(model, adapter, **options)
        _, gradient = model.gradient([batch])
        model.descend(gradient, RATE)
        for name, factors in model.adapter():
            np.testing.assert_allclose(factors.a, stepped.modules[name].a, atol=1e-6)
            np.testing.assert_allclose(factors.b, stepped.modules[name].b, atol=1e-6)


def test_examples_one_by_one_have_gradients_of_their_own(model, batch, adapter):
    begin(model, adapter)
    _, whole = model.gradient([batch])
    total = float(batch.weights.sum())
    sums = {name: np.zeros_like(f.b) for name, f in whole}
    for example in one_by_one(batch):
        _, gradient = model.gradient([example])
        for name, factors in gradient:
            sums[name] += factors.b * np.float32(float(example.weights.sum()) / total)
    for name, factors in whole:
        np.testing.assert_allclose(sums[name], factors.b, atol=1e-5)
