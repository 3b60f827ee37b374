import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from coordinator.errors import MergeError
from coordinator.strategies.choice import METHODS
from coordinator.strategies.contract import Contribution, State, Waiting
from coordinator.strategies.pipeline import Pipeline
from coordinator.strategies.pipeline_state import Item
from coordinator.strategies.written import read_method


def fedbuff(buffer_size, space=None, **settings):
    return Pipeline("fedbuff", read_method(METHODS["fedbuff"], {}, space).method, buffer_size, **settings)


MASTER = LoraAdapter({"m": Factors(np.ones((1, 2), np.float32), np.zeros((2, 1), np.float32), 1.0)})


def contribution(name, size, staleness):
    delta = LoraAdapter({"m": Factors(np.zeros((1, 2), np.float32), np.full((2, 1), size, np.float32), 1.0)})
    return Contribution(name, "d-" + name, 5 - staleness, staleness, 1, lambda: delta, lambda: MASTER)


@pytest.mark.parametrize("space", ["product", "factors"])
def test_three_updates_recomputed_by_hand(space):
    buffer = [contribution("x", 1.0, 0), contribution("y", 2.0, 3), contribution("z", 3.0, 8)]
    state, report = fedbuff(3, space=space, server_lr=2.0).merge(State(5, MASTER), buffer)
    step = 2.0 * (1.0 / 1 + 2.0 / 2 + 3.0 / 3) / 3  # eta * (1/K) * sum s(tau) * delta
    merged = state.adapter.modules["m"]
    assert merged.b @ merged.a == pytest.approx(np.full((2, 2), step), abs=1e-6)
    assert state.version == 6
    assert [share.weight for share in report.shares] == pytest.approx([1 / 3, 1 / 6, 1 / 9])
    assert [share.staleness for share in report.shares] == [0, 3, 8]
    assert [share.base_version for share in report.shares] == [5, 2, -3]


def test_an_update_that_is_three_versions_old_counts_half():
    (freshness,) = METHODS["fedbuff"].order
    weighed = [freshness.factor(Item(contribution("x", 1.0, tau), 1.0, None, None), None) for tau in (0, 3)]
    assert weighed == [1.0, 0.5]


def test_k_updates_are_taken_and_the_rest_waits():
    waiting = [Waiting("d", 0, 0.0)] * 5
    strategy = fedbuff(2)
    assert [strategy.pace(waiting[:n], 9).take for n in range(6)] == [0, 0, 2, 2, 2, 2]


def test_the_time_budget_takes_what_is_there():
    strategy = fedbuff(4, time_budget_s=10)
    assert strategy.pace([], 9).take == 0
    assert strategy.pace([Waiting("d", 0, 9.0)], 9).take == 0
    assert strategy.pace([Waiting("d", 0, 10.0), Waiting("d", 0, 0.0)], 9).take == 2


def test_an_empty_buffer_is_an_error():
    with pytest.raises(MergeError, match="buffer is empty"):
        fedbuff(1).merge(State(0, MASTER), [])
