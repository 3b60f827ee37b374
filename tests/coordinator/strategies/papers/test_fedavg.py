import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from coordinator.errors import MergeError
from coordinator.strategies.choice import METHODS
from coordinator.strategies.contract import Contribution, State, Waiting
from coordinator.strategies.pipeline import Pipeline
from coordinator.strategies.written import read_method


def fedavg(buffer_size, space=None, **settings):
    return Pipeline("fedavg", read_method(METHODS["fedavg"], {}, space).method, buffer_size, **settings)


MASTER = LoraAdapter({"m": Factors(np.ones((1, 2), np.float32), np.zeros((2, 1), np.float32), 1.0)})


def contribution(name, size, num_examples, staleness=0):
    delta = LoraAdapter({"m": Factors(np.zeros((1, 2), np.float32), np.full((2, 1), size, np.float32), 1.0)})
    return Contribution(name, name, 0, staleness, num_examples, lambda: delta, lambda: MASTER)


@pytest.mark.parametrize("space", ["product", "factors"])
def test_devices_weigh_by_their_examples(space):
    buffer = [contribution("x", 1.0, 30), contribution("y", 5.0, 10)]
    state, report = fedavg(2, space=space).merge(State(0, MASTER), buffer)
    merged = state.adapter.modules["m"]
    assert merged.b @ merged.a == pytest.approx(np.full((2, 2), 0.75 * 1 + 0.25 * 5), abs=1e-6)
    assert [share.weight for share in report.shares] == [0.75, 0.25]


def test_the_round_waits_for_every_device_of_the_cohort():
    strategy = fedavg(1, cohort=frozenset({"x", "y"}))
    assert strategy.pace([Waiting("x", 0, 1e9), Waiting("z", 0, 0)], 9).take == 0
    assert strategy.pace([Waiting("x", 0, 0), Waiting("z", 0, 0), Waiting("y", 0, 0)], 9).take == 3


def test_without_a_cohort_the_round_waits_for_distinct_devices():
    strategy = fedavg(2)
    assert strategy.pace([Waiting("x", 0, 0), Waiting("x", 0, 0)], 9).take == 0
    assert strategy.pace([Waiting("x", 0, 0), Waiting("y", 0, 0)], 9).take == 2


def test_a_late_update_neither_completes_a_round_nor_weighs():
    strategy = fedavg(2)
    assert strategy.pace([Waiting("x", 1, 0), Waiting("y", 0, 0)], 9).take == 0
    buffer = [contribution("x", 1.0, 30, staleness=1), contribution("y", 5.0, 10)]
    _, report = strategy.merge(State(1, MASTER), buffer)
    assert [share.weight for share in report.shares] == [0.0, 1.0]


def test_a_round_without_examples_is_an_error():
    with pytest.raises(MergeError, match="no example"):
        fedavg(1).merge(State(0, MASTER), [contribution("x", 1.0, 0)])
