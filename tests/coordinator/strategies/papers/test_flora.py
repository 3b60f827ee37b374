import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.strategies.contract import State


def test_what_the_fleets_rank_cannot_hold_is_carried(adapter, dense, update, strategy):
    present = adapter([[1, 1]], [[0], [0]])
    x = update(adapter([[1, 0]], [[4], [0]]), present, name="x")  # diag(4, 0)
    y = update(adapter([[0, 1]], [[0], [2]]), present, name="y")  # diag(0, 2)
    state, report = strategy("flora").merge(State(0, present), [x, y])
    assert dense(state.adapter) == pytest.approx(np.diag([2, 0]), abs=1e-6)
    assert dense(state.remainder) == pytest.approx(np.diag([0, 1]), abs=1e-6)
    assert report.remainder_norm == pytest.approx(1.0)
    assert report.dropped_norm == pytest.approx(0.0, abs=1e-6)


def test_what_is_carried_comes_in_when_there_is_room(adapter, dense, update, strategy):
    present, carried = adapter([[1, 0]], [[2], [0]]), adapter([[0, 1]], [[0], [1]])
    gone = update(adapter([[1, 0]], [[0], [0]]), present)  # a device that unlearnt all it was given
    state, _ = strategy("flora").merge(State(1, present, carried), [gone])
    assert dense(state.adapter) == pytest.approx(np.diag([0, 1]), abs=1e-6)
    assert state.remainder is None


@given(seed=st.integers(0, 1000), ranks=st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_nothing_that_is_stacked_is_lost(random_adapter, dense, update, strategy, seed, ranks):
    present, carried = random_adapter(3, seed), random_adapter(1, seed + 1)
    bases = [random_adapter(rank, seed + 10 + k) for k, rank in enumerate(ranks)]
    trained = [random_adapter(rank, seed + 20 + k) for k, rank in enumerate(ranks)]
    counts = [1 + k for k in range(len(ranks))]
    buffer = [
        update(one, base, name=str(count), num_examples=count)
        for one, base, count in zip(trained, bases, counts, strict=True)
    ]
    state, _ = strategy("flora").merge(State(0, present, carried), buffer)
    for name in ("m", "n"):
        stack = sum(count * dense(one, name) for count, one in zip(counts, trained, strict=True))
        expected = stack / sum(counts) + dense(carried, name)
        u, sigma, vt = np.linalg.svd(expected)
        size = np.abs(expected).max()
        assert dense(state.adapter, name) == pytest.approx((u[:, :3] * sigma[:3]) @ vt[:3], abs=1e-4 * size)
        has_rest = state.remainder is not None and name in state.remainder.modules
        rest = dense(state.remainder, name) if has_rest else 0
        assert dense(state.adapter, name) + rest == pytest.approx(expected, abs=1e-4 * size)


@pytest.mark.parametrize(
    ("name", "stages", "norm"),
    [
        ("flora", {}, 1.0),
        ("tunefleet", {"order": [], "guard": "none"}, 0.8),
        ("flora", {"remainder_decay": 0.5}, 0.5),
    ],
)
def test_what_is_carried_decays_elsewhere_and_stays_whole_here(
    name, stages, norm, adapter, dense, update, strategy
):
    present, carried = adapter([[1, 0]], [[4], [0]]), adapter([[0, 1]], [[0], [1]])
    again = update(present, present)  # a device that changed nothing
    state, report = strategy(name, stages).merge(State(1, present, carried), [again])
    assert dense(state.adapter) == pytest.approx(np.diag([4, 0]), abs=1e-6)
    assert dense(state.remainder) == pytest.approx(np.diag([0, norm]), abs=1e-6)
    assert report.remainder_norm == pytest.approx(norm)
