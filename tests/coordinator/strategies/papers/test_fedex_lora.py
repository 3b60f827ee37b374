import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.adapter import Factors, LoraAdapter
from coordinator.strategies.contract import State
from coordinator.strategies.tiers import dispatch


def sent_to_devices(strategy, state):
    return dispatch(strategy.method, state, state.adapter.max_rank, None, strategy.remainder_rank)


def train(dispatched, seed, rank):
    """Moves the first `rank` rows, as `Recipe.train_rank` asks."""
    rng = np.random.default_rng(seed)
    moved = {}
    for name, f in dispatched:
        a, b = f.a.copy(), f.b.copy()
        a[:rank] += rng.standard_normal(a[:rank].shape)
        b[:, :rank] += rng.standard_normal(b[:, :rank].shape)
        moved[name] = Factors(a, b, f.scale)
    return LoraAdapter(moved)


def test_two_devices_recomputed_by_hand(adapter, dense, update, strategy):
    fedex = strategy("fedex-lora", remainder_rank=1)
    first = State(0, adapter([[1, 0]], [[0], [0]]))
    base = sent_to_devices(fedex, first)
    x = update(adapter([[2, 0], [0, 0]], [[2, 0], [0, 0]]), base, name="x")  # diag(4, 0)
    y = update(adapter([[0, 2], [0, 0]], [[0, 0], [2, 0]]), base, name="y")  # diag(0, 4)
    state, report = fedex.merge(first, [x, y])
    assert state.adapter.modules["m"].a.tolist() == [[1, 1]]
    assert state.adapter.modules["m"].b.tolist() == [[1], [1]]
    assert dense(state.remainder) == pytest.approx(np.array([[1, -1], [-1, 1]]), abs=1e-6)
    assert report.remainder_norm == pytest.approx(2.0)
    assert dense(sent_to_devices(fedex, state)) == pytest.approx(np.diag([2, 2]), abs=1e-6)


@given(seed=st.integers(0, 1000), num=st.integers(1, 3), server_lr=st.sampled_from([1.0, 0.5]))
def test_devices_compute_with_the_exact_sum_of_true_changes_version_after_version(
    random_adapter, dense, update, strategy, seed, num, server_lr
):
    fedex = strategy("fedex-lora", remainder_rank=5, server_lr=server_lr)  # as many rows as B has
    state = State(0, random_adapter(2, seed))
    older = sent_to_devices(fedex, state)
    for version in range(3):
        present = sent_to_devices(fedex, state)
        bases = [older if k == 0 else present for k in range(num)]  # the first device is a version late
        trained = [train(base, seed + 10 * version + k, 2) for k, base in enumerate(bases)]
        buffer = [
            update(one, base, name=str(k)) for k, (one, base) in enumerate(zip(trained, bases, strict=True))
        ]
        state, report = fedex.merge(state, buffer)
        merged = sent_to_devices(fedex, state)
        for name in ("m", "n"):
            changes = [dense(one, name) - dense(base, name) for one, base in zip(trained, bases, strict=True)]
            expected = dense(present, name) + server_lr * sum(changes) / num
            assert dense(merged, name) == pytest.approx(expected, abs=1e-3 * np.abs(expected).max())
        assert report.dropped_norm == pytest.approx(0.0, abs=1e-3 * report.step_norm)
        assert {f.rank for _, f in merged} == {2 + 5}
        older = present


def test_what_the_cap_on_the_residuals_rank_loses_is_reported(random_adapter, dense, update, strategy):
    first = State(0, random_adapter(1, 1))
    fedex = strategy("fedex-lora", remainder_rank=1)
    base = sent_to_devices(fedex, first)
    trained = [train(base, 2 + k, 1) for k in range(3)]
    buffer = [update(one, base, name=str(k)) for k, one in enumerate(trained)]
    state, report = fedex.merge(first, buffer)
    lost = 0.0
    for name in ("m", "n"):
        mean = sum(dense(one, name) for one in trained) / 3
        sigma = np.linalg.svd(mean - dense(state.adapter, name), compute_uv=False)
        assert np.linalg.norm(dense(state.remainder, name)) == pytest.approx(sigma[0], rel=1e-4)
        lost += (sigma[1:] ** 2).sum()
    assert report.dropped_norm == pytest.approx(np.sqrt(lost), rel=1e-3)


def test_rows_that_carry_the_residual_are_the_coordinators_alone(adapter, dense, update, strategy):
    fedex = strategy("fedex-lora", remainder_rank=1)
    first = State(0, adapter([[1, 0]], [[1], [0]]), adapter([[0, 1]], [[0], [1]]))
    base = sent_to_devices(fedex, first)
    meddler = update(adapter([[1, 0], [9, 9]], [[1, 9], [0, 9]]), base)
    state, report = fedex.merge(first, [meddler])
    assert dense(sent_to_devices(fedex, state)) == pytest.approx(np.eye(2), abs=1e-6)
    assert report.shares[0].norm == 0.0


def test_a_module_that_nobody_trained_keeps_its_residual(random_adapter, update, strategy):
    first = State(0, random_adapter(2, 1), random_adapter(3, 2))
    fedex = strategy("fedex-lora", remainder_rank=3)
    part = LoraAdapter({"m": sent_to_devices(fedex, first).modules["m"]})
    state, _ = fedex.merge(first, [update(train(part, 3, 2), part)])
    for kept, old in (
        (state.adapter.modules["n"], first.adapter.modules["n"]),
        (state.remainder.modules["n"], first.remainder.modules["n"]),
    ):
        assert np.array_equal(kept.a, old.a)
        assert np.array_equal(kept.b, old.b)
