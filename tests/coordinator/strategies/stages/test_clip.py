import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.strategies.contract import State
from coordinator.strategies.stages.clip import MEMORY, Clip


def entries(item):
    return item.load_delta().modules["m"].a[0].tolist()


def test_a_norm_is_cut_to_twice_the_median(pipeline_of, vector, buffer_of):
    pipeline = Clip(2.0)(pipeline_of(vector(0, 0), buffer_of((3, 0), (0, 4), (30, 40))))
    assert [entries(item) for item in pipeline.items] == [[3, 0], [0, 4], pytest.approx([4.8, 6.4])]
    assert [item.reason for item in pipeline.items] == ["", "", "norm 50 cut to 8"]
    assert [item.weight for item in pipeline.items] == [1 / 3] * 3


def test_an_update_alone_is_measured_by_those_before_it(pipeline_of, vector, buffer_of):
    remembered = State(4, vector(0, 0), norms=(1.0, 1.0, 1.0))
    pipeline = Clip(2.0)(pipeline_of(remembered, buffer_of((0, 10))))
    assert entries(pipeline.items[0]) == pytest.approx([0, 2])
    assert pipeline.state.norms == (1, 1, 1, 10)  # as it was before the cut: the fleet's usual step may grow
    assert remembered.norms == (1, 1, 1)


def test_the_very_first_update_is_measured_by_itself(pipeline_of, vector, buffer_of):
    assert entries(Clip()(pipeline_of(vector(0, 0), buffer_of((0, 10)))).items[0]) == [0, 10]


def test_most_of_a_small_buffer_being_hostile_does_not_move_the_bound(pipeline_of, vector, buffer_of):
    remembered = State(9, vector(0, 0), norms=(1.0,) * 20)
    pipeline = Clip(2.0)(pipeline_of(remembered, buffer_of((1, 0), (100, 0), (0, 100))))
    assert [np.linalg.norm(entries(item)) for item in pipeline.items] == pytest.approx([1, 2, 2])


def test_the_latest_norms_are_remembered(pipeline_of, vector, buffer_of):
    remembered = State(9, vector(0, 0), norms=tuple(float(n) for n in range(MEMORY)))
    assert Clip()(pipeline_of(remembered, buffer_of((7, 0)))).state.norms == (*range(1, MEMORY), 7)


def test_updates_that_taught_nothing_do_not_set_the_bound(pipeline_of, vector, buffer_of):
    pipeline = Clip()(pipeline_of(vector(0, 0), buffer_of((0, 0), (0, 0), (3, 0))))
    assert entries(pipeline.items[2]) == [3, 0]


@given(seed=st.integers(0, 1000), rank=st.integers(1, 3))
def test_a_true_change_is_cut_to_the_bound(
    seed, rank, random_adapter, contribution, pipeline_of, dense_change
):
    base = random_adapter(rank, seed)
    buffer = [contribution(random_adapter(rank, seed + n, size=0.1), base, f"u{n}") for n in (1, 2)]
    buffer.append(contribution(random_adapter(rank, seed + 3, size=10.0), base, "u3"))
    pipeline = Clip(1.0)(pipeline_of(random_adapter(3, seed), buffer, space="product"))
    norms = sorted(np.linalg.norm(dense_change(base, one.load_delta())) for one in buffer)
    after = [np.linalg.norm(dense_change(base, item.load_delta())) for item in pipeline.items]
    assert max(after) == pytest.approx(norms[1], rel=1e-4)
    assert sorted(after)[0] == pytest.approx(norms[0], rel=1e-4)
