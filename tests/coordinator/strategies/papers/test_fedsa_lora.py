import numpy as np

from coordinator.strategies.contract import State


def test_a_is_merged_and_nobodys_b_is(adapter, update, strategy):
    present = adapter([[1, 0]], [[0], [0]])
    x = update(adapter([[5, 0]], [[3], [0]]), present, name="x", num_examples=1)
    y = update(adapter([[1, 8]], [[0], [7]]), present, name="y", num_examples=3)
    merged = strategy("fedsa-lora").merge(State(0, present), [x, y])[0].adapter.modules["m"]
    assert merged.a.tolist() == [[2, 6]]  # 1 + (1 * 4 + 3 * 0) / 4, 0 + (1 * 0 + 3 * 8) / 4
    assert np.array_equal(merged.b, present.modules["m"].b)


def test_a_device_of_lower_rank_moves_the_first_rows(adapter, update, strategy):
    present, low = adapter([[1, 0], [0, 1]], [[0, 0]]), adapter([[1, 0]], [[0]])
    state, _ = strategy("fedsa-lora").merge(State(0, present), [update(adapter([[3, 4]], [[5]]), low)])
    assert state.adapter.modules["m"].a.tolist() == [[3, 4], [0, 1]]
