import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.adapter import Factors
from coordinator.strategies.contract import State
from coordinator.strategies.merges.fair import correct


def test_two_devices_recomputed_by_hand(adapter, update, strategy):
    present = adapter([[7, 7]], [[0]])
    x = update(adapter([[1, 0]], [[4]]), present, name="x")
    y = update(adapter([[1, 2]], [[0]]), present, name="y")
    # dW = ([4, 0] + 0) / 2 = [2, 0]; A' = [1, 1], B' = 2, R = [2, 0] - [2, 2] = [0, -2]
    # R A'^T = -2, A'A'^T = 2, mu = 1 * 2: dB = -2 / (2 + 2)
    state, report = strategy("lora-fair", {"fair_ridge": 1.0}).merge(State(0, present), [x, y])
    merged = state.adapter.modules["m"]
    assert merged.a.tolist() == [[1, 1]]
    assert merged.b.tolist() == [[1.5]]
    assert report.step_norm == pytest.approx(np.sqrt(36 + 36 + 2.25))


def test_one_device_is_taken_over_as_it_is(random_adapter, update, strategy):
    present, trained = random_adapter(2, 1), random_adapter(2, 2)
    state, _ = strategy("lora-fair").merge(State(0, present), [update(trained, present)])
    for name, merged in state.adapter:
        assert merged.a == pytest.approx(trained.modules[name].a, abs=1e-5)
        assert merged.b == pytest.approx(trained.modules[name].b, abs=1e-4)


@given(seed=st.integers(0, 1000), num=st.integers(1, 4), ridge=st.sampled_from([1e-3, 1e-2, 1.0]))
def test_b_is_the_dense_ridge_regressions(random_adapter, dense, update, strategy, seed, num, ridge):
    present = random_adapter(2, seed)
    bases = [random_adapter(2, seed + 10 + k) for k in range(num)]
    trained = [random_adapter(2, seed + 20 + k) for k in range(num)]
    buffer = [
        update(one, base, name=str(k), num_examples=1 + k)
        for k, (one, base) in enumerate(zip(trained, bases, strict=True))
    ]
    state, _ = strategy("lora-fair", {"fair_ridge": ridge}).merge(State(0, present), buffer)
    p = np.arange(1, num + 1) / sum(range(1, num + 1))
    for name, merged in state.adapter:
        mean_a = sum(w * one.modules[name].a.astype(float) for w, one in zip(p, trained, strict=True))
        mean_b = sum(w * one.modules[name].b.astype(float) for w, one in zip(p, trained, strict=True))
        wanted = sum(w * dense(one, name) for w, one in zip(p, trained, strict=True)) / merged.scale
        mu = ridge * (mean_a**2).sum() / 2
        # min |(wanted - mean_b mean_a) - dB mean_a|^2 + mu |dB|^2 as least squares on stacked rows
        rows = np.concatenate([mean_a.T, np.sqrt(mu) * np.eye(2)])
        right = np.concatenate([(wanted - mean_b @ mean_a).T, np.zeros((2, len(wanted)))])
        expected = mean_b + np.linalg.lstsq(rows, right, rcond=None)[0].T
        assert merged.a == pytest.approx(mean_a, abs=1e-4)
        assert merged.b == pytest.approx(expected, abs=1e-3 * max(1, np.abs(expected).max()))
        before, after = (np.linalg.norm(wanted - b @ mean_a) for b in (mean_b, merged.b))
        assert after <= before * (1 + 1e-4) + 1e-4


def test_an_a_of_zeros_asks_for_no_correction():
    left = Factors(np.ones((1, 3), np.float32), np.ones((2, 1), np.float32), 1.0)
    assert correct(left, np.zeros((2, 3), np.float32), 0.01).tolist() == [[0, 0], [0, 0]]
