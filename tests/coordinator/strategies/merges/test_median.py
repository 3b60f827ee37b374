from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.adapter import Factors, LoraAdapter
from coordinator.strategies.contract import State
from coordinator.strategies.merges.contract import Terms
from coordinator.strategies.merges.median import Median, TrimmedMean, add_middles, median, trimmed_mean


def test_the_median_of_an_even_number_is_between_the_two_in_the_middle():
    assert median(np.float32([[[1, 9]], [[2, 0]], [[4, 3]], [[90, 1]]])).tolist() == [[3, 2]]


def test_the_trimmed_mean_leaves_out_the_ends_of_every_coordinate():
    stack = np.float32([[[1, 9]], [[2, 0]], [[90, 4]], [[-7, 5]], [[3, 6]]])
    assert trimmed_mean(stack, 0.2).tolist() == [[2, 5]]  # (1 + 2 + 3) / 3, (4 + 5 + 6) / 3
    assert trimmed_mean(stack[:4], 0.2).tolist() == [[21.5, 4.5]]  # a fifth of four is nobody
    assert trimmed_mean(np.arange(10, dtype=np.float32)[:, None, None], 0.3).tolist() == [[4.5]]


def test_the_step_is_as_long_as_a_sums(vector, contribution):
    buffer = [contribution(vector(x, 2), vector(0, 0)) for x in (1, 3, 500)]
    total = add_middles(State(0, vector(10, 0)), buffer, [0.25, 0.125, 0.025], median).at(1.0)
    # eta * sum of weights * median = 0.5 * 0.8 * (3, 2)
    assert total.adapter.modules["m"].a == pytest.approx(np.array([[11.2, 0.8]]))
    assert total.step_norm == pytest.approx(0.4 * 13**0.5)
    assert total.norms == pytest.approx([5**0.5, 13**0.5, np.hypot(500, 2)])


@pytest.mark.parametrize("middle", [median, partial(trimmed_mean, trim=0.3)])
def test_one_hostile_update_of_any_size_moves_nothing_beyond_the_others(middle, vector, contribution):
    buffer = [contribution(vector(x), vector(0)) for x in (1, 1, 1, -1e20)]
    total = add_middles(State(0, vector(0)), buffer, [0.25] * 4, middle).at(1.0)
    assert total.adapter.modules["m"].a.tolist() == [[1]]


def test_rows_that_only_some_have_are_the_middle_of_theirs():
    def adapter(rows, rank):
        return LoraAdapter({"m": Factors(np.float32(rows), np.zeros((2, rank), np.float32), 1.0)})

    class Update:
        def __init__(self, delta):
            self.load_delta = self.load_base = lambda: delta

    buffer = [Update(adapter([[1.0]], 1)), Update(adapter([[2.0], [8.0]], 2)), Update(adapter([[9.0]], 1))]
    total = add_middles(State(0, adapter([[0.0], [0.0]], 2)), buffer, [0.25, 0.5, 0.25], median).at(1.0)
    assert total.adapter.modules["m"].a.tolist() == [[2], [4]]  # 1 * median(1, 2, 9), 0.5 * 8


def test_a_module_that_nobody_trained_stays(random_adapter, contribution):
    master = random_adapter(2, 1)
    update = contribution(random_adapter(2, 2, ("m",)), master)
    total = add_middles(State(0, master), [update], [1.0], median).at(1.0)
    assert total.adapter.modules["n"].a.tolist() == master.modules["n"].a.tolist()
    assert total.adapter.modules["n"].b.tolist() == master.modules["n"].b.tolist()


@given(seed=st.integers(0, 1000), num=st.integers(1, 7), merge=st.sampled_from([Median(), TrimmedMean(0.25)]))
def test_both_are_those_of_dense_entries(seed, num, merge, random_adapter, contribution):
    master = random_adapter(2, seed)
    deltas = [random_adapter(2, seed + 1 + n) for n in range(num)]
    buffer = [contribution(delta, master, f"u{n}") for n, delta in enumerate(deltas)]
    total = merge.prepare(Terms(State(0, master), buffer, [2.0 / num] * num)).at(1.0)
    for name, old in master:
        for factor in ("a", "b"):
            stack = np.sort([getattr(delta.modules[name], factor) for delta in deltas], axis=0)
            cut = num // 4
            middle = np.median(stack, axis=0) if merge == Median() else stack[cut : num - cut].mean(axis=0)
            found = getattr(total.adapter.modules[name], factor)
            assert found == pytest.approx(getattr(old, factor) + 2 * middle, abs=1e-5)


def test_an_update_without_weight_takes_no_part(vector, contribution, pipeline_of):
    buffer = [contribution(vector(x), vector(0), f"u{x}") for x in (1, 2, 900)]
    chosen = pipeline_of(vector(0), buffer).weigh([1.0, 1.0, 0.0]).chosen
    weights = [one.weight for one in chosen]
    total = Median().prepare(Terms(State(0, vector(0)), chosen, weights)).at(1.0)
    assert total.adapter.modules["m"].a == pytest.approx(np.array([[1.0]]))  # 2/3 * 1.5
