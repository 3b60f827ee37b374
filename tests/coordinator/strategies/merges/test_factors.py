import numpy as np

from converters.adapter import Factors, LoraAdapter
from converters.masking import leading_rows
from coordinator.strategies.contract import Contribution, State
from coordinator.strategies.merges.factors import add_increments


def adapter(a, b, scale=2.0):
    return LoraAdapter({"m": Factors(np.array(a, np.float32), np.array(b, np.float32), scale)})


def contribution(name, delta, base=None, staleness=0, num_examples=1):
    return Contribution(name, f"of-{name}", 0, staleness, num_examples, lambda: delta, lambda: base)


MASTER = adapter([[1, 0, 0], [0, 1, 0]], [[0, 0], [0, 0]])


def test_increments_of_both_factors_are_added_with_their_weights():
    x = adapter([[1, 0, 0], [0, 0, 0]], [[0, 4], [0, 0]])
    y = adapter([[0, 0, 8], [0, 0, 0]], [[0, 0], [2, 0]])
    total = add_increments(State(3, MASTER), [contribution("x", x), contribution("y", y)], [0.5, 0.25]).at(
        1.0
    )
    merged = total.adapter.modules["m"]
    assert merged.a.tolist() == [[1.5, 0, 2], [0, 1, 0]]
    assert merged.b.tolist() == [[0, 2], [0.5, 0]]
    assert total.norms == (np.sqrt(17), np.sqrt(68))
    assert total.step_norm == np.sqrt(0.25 + 4 + 4 + 0.25)


def test_the_servers_learning_rate_multiplies_the_step():
    x = adapter([[2, 0, 0], [0, 0, 0]], [[0, 0], [0, 0]])
    total = add_increments(State(0, MASTER), [contribution("x", x)], [0.5 * w for w in [1.0]]).at(1.0)
    assert total.adapter.modules["m"].a.tolist() == [[2, 0, 0], [0, 1, 0]]
    assert total.step_norm == 1.0


def test_a_device_of_lower_rank_moves_the_first_directions_only():
    low = adapter([[0, 0, 3]], [[5], [6]])
    merged = add_increments(State(0, MASTER), [contribution("x", low)], [1.0]).at(1.0).adapter.modules["m"]
    assert merged.a.tolist() == [[1, 0, 3], [0, 1, 0]]
    assert merged.b.tolist() == [[5, 0], [6, 0]]


def test_truncated_factors_are_the_first_rows_and_columns():
    low = leading_rows(adapter([[1, 2, 3], [4, 5, 6]], [[1, 2], [3, 4]]), 1).modules["m"]
    assert (low.a.tolist(), low.b.tolist(), low.scale) == ([[1, 2, 3]], [[1], [3]], 2.0)


def test_a_module_that_nobody_trained_stays():
    master = LoraAdapter({**MASTER.modules, "other": MASTER.modules["m"]})
    total = add_increments(State(0, master), [contribution("x", MASTER)], [1.0]).at(1.0)
    assert total.adapter.modules["other"].a.tolist() == MASTER.modules["m"].a.tolist()


def test_one_update_is_in_memory_at_a_time():
    alive, most = 0, 0

    class Held(LoraAdapter):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def load():
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return Held(MASTER.modules)

    buffer = [Contribution(str(n), "d", 0, 0, 1, load, lambda: MASTER) for n in range(8)]
    add_increments(State(0, MASTER), buffer, [0.125] * 8).at(1.0)
    assert most <= 2  # the next is read before the last name for the previous one is gone
