import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.strategies.contract import State
from coordinator.strategies.tiers import dispatch


def test_two_ranks_are_padded_and_weighed_by_their_products_norms(adapter, update, strategy):
    present = adapter([[1, 0], [0, 1]], [[0, 0], [0, 0]])
    x = update(adapter([[1, 0], [0, 1]], [[0, 0], [0, 3]]), present, name="x")  # |diag(0, 3)| = 3
    y = update(adapter([[1, 0]], [[1], [0]]), adapter([[1, 0]], [[0], [0]]), name="y")  # |diag(1, 0)| = 1
    state, report = strategy("hetlora").merge(State(0, present), [x, y])
    assert [share.weight for share in report.shares] == [0.75, 0.25]
    merged = state.adapter.modules["m"]
    assert merged.a.tolist() == [[1, 0], [0, 0.75]]  # the second row is zero on y
    assert merged.b.tolist() == [[0.25, 0], [0, 2.25]]


def test_a_lower_tier_gets_the_first_rows(adapter, strategy):
    state = State(1, adapter([[1, 2], [3, 4]], [[5, 6]]))
    low = dispatch(strategy("hetlora").method, state, 1, adapter([[0, 0]], [[0]]), 32).modules["m"]
    assert (low.a.tolist(), low.b.tolist()) == ([[1, 2]], [[5]])


@given(seed=st.integers(0, 1000), ranks=st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_the_merge_is_the_weighted_mean_of_padded_factors(
    random_adapter, dense, update, strategy, seed, ranks
):
    present = random_adapter(3, seed)
    bases = [random_adapter(rank, seed + 10 + k) for k, rank in enumerate(ranks)]
    trained = [random_adapter(rank, seed + 20 + k) for k, rank in enumerate(ranks)]
    buffer = [
        update(one, base, name=str(k)) for k, (one, base) in enumerate(zip(trained, bases, strict=True))
    ]
    state, report = strategy("hetlora").merge(State(0, present), buffer)
    norms = [np.hypot(np.linalg.norm(dense(one, "m")), np.linalg.norm(dense(one, "n"))) for one in trained]
    weights = np.array(norms) / sum(norms)
    assert [share.weight for share in report.shares] == pytest.approx(weights, rel=1e-4)
    for name, merged in state.adapter:
        pads = [(one.modules[name], 3 - rank) for one, rank in zip(trained, ranks, strict=True)]
        a = sum(p * np.pad(f.a, ((0, more), (0, 0))) for p, (f, more) in zip(weights, pads, strict=True))
        b = sum(p * np.pad(f.b, ((0, 0), (0, more))) for p, (f, more) in zip(weights, pads, strict=True))
        assert merged.a == pytest.approx(a, abs=1e-4)
        assert merged.b == pytest.approx(b, abs=1e-4)
