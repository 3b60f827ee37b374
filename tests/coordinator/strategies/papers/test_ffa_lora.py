import numpy as np
import pytest

from coordinator.strategies.contract import State


def test_b_is_the_mean_by_examples_and_a_stays_to_the_last_bit(adapter, update, strategy):
    present = adapter([[0.1, 0.7]], [[1], [0]])
    x = update(adapter([[0.1, 0.7]], [[5], [0]]), present, name="x", num_examples=1)
    y = update(adapter([[0.1, 0.7]], [[1], [8]]), present, name="y", num_examples=3)
    merged = strategy("ffa-lora").merge(State(0, present), [x, y])[0].adapter.modules["m"]
    assert merged.b.tolist() == [[2], [6]]  # 1 + (1 * 4 + 3 * 0) / 4, 0 + (1 * 0 + 3 * 8) / 4
    assert np.array_equal(merged.a, present.modules["m"].a)


def test_the_mean_of_factors_is_the_mean_of_products(random_adapter, dense, update, strategy):
    present, other = random_adapter(2, 1), random_adapter(2, 2)
    trained = [
        type(present)({name: f._replace(b=other.modules[name].b * k) for name, f in present}) for k in (1, 2)
    ]
    buffer = [update(one, present, name=str(k)) for k, one in enumerate(trained)]
    state, _ = strategy("ffa-lora").merge(State(0, present), buffer)
    for name in ("m", "n"):
        mean = sum(dense(one, name) for one in trained) / 2
        assert dense(state.adapter, name) == pytest.approx(mean, abs=1e-5)


def test_an_a_that_a_device_sends_all_the_same_is_not_merged(adapter, update, strategy):
    present = adapter([[1, 1]], [[0], [0]])
    sent = update(adapter([[9, 9]], [[2], [0]]), present)
    state, report = strategy("ffa-lora").merge(State(0, present), [sent])
    assert state.adapter.modules["m"].a.tolist() == [[1, 1]]
    assert report.shares[0].norm == 2.0
