import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.strategies.contract import State
from coordinator.strategies.tiers import dispatch


def test_what_the_fleets_rank_cannot_hold_is_dropped_and_reported(adapter, dense, update, strategy):
    present = adapter([[1, 1]], [[0], [0]])
    x = update(adapter([[1, 0]], [[4], [0]]), present, name="x")  # diag(4, 0)
    y = update(adapter([[0, 1]], [[0], [2]]), present, name="y")  # diag(0, 2)
    state, report = strategy("flexlora").merge(State(0, present), [x, y])
    assert dense(state.adapter) == pytest.approx(np.diag([2, 0]), abs=1e-6)
    assert state.remainder is None
    assert (report.remainder_norm, report.dropped_norm) == (0.0, pytest.approx(1.0))


@given(seed=st.integers(0, 1000), ranks=st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_every_tier_gets_the_leading_directions_of_the_dense_mean(
    random_adapter, dense, update, strategy, seed, ranks
):
    present = random_adapter(3, seed)
    trained = [random_adapter(rank, seed + 20 + k) for k, rank in enumerate(ranks)]
    buffer = [update(one, one, name=str(k), num_examples=1 + k) for k, one in enumerate(trained)]
    flexlora = strategy("flexlora")
    state, _ = flexlora.merge(State(0, present), buffer)
    low = dispatch(flexlora.method, state, 2, random_adapter(2, seed + 1), 32)
    for name in ("m", "n"):
        weights = np.arange(1, len(ranks) + 1) / sum(range(1, len(ranks) + 1))
        mean = sum(p * dense(one, name) for p, one in zip(weights, trained, strict=True))
        u, sigma, vt = np.linalg.svd(mean)
        for sent, rank in ((state.adapter, 3), (low, 2)):
            best = (u[:, :rank] * sigma[:rank]) @ vt[:rank]
            assert np.linalg.norm(dense(sent, name) - best) < 1e-2 * sigma[0]
