import pytest

from coordinator.strategies.choice import METHODS
from coordinator.strategies.contract import Pace, Waiting
from coordinator.strategies.pipeline import Pipeline
from coordinator.strategies.triggers import automatic_budget_s, automatic_size, pace_buffer, pace_round


def waiting(*devices, staleness=0, waited_s=0.0, trained_s=0.0):
    return [Waiting(device, staleness, waited_s, trained_s) for device in devices]


def test_a_full_buffer_is_taken_and_no_more():
    assert [pace_buffer(waiting(*"abcd"[:num]), 3, 0.0).take for num in range(5)] == [0, 0, 0, 3, 3]


def test_what_is_there_is_taken_when_the_budget_is_over():
    assert pace_buffer(waiting("a", waited_s=59.0), 3, 60.0) == Pace(0, 1, 3, 1.0)
    assert pace_buffer(waiting("a", waited_s=60.0) + waiting("b"), 3, 60.0) == Pace(2, 2, 3, 0.0)


def test_a_budget_of_zero_never_ends():
    assert pace_buffer(waiting("a", waited_s=1e12), 3, 0.0) == Pace(0, 1, 3, None)


def test_a_round_takes_all_once_its_cohort_has_answered():
    cohort = frozenset("ab")
    assert pace_round(waiting("a", "c", "a"), 1, cohort, 0.0) == Pace(0, 1, 2, None)
    assert pace_round(waiting("a", "c", "b"), 1, cohort, 0.0) == Pace(3, 2, 2, None)


def test_an_answer_of_an_earlier_round_completes_none():
    late = waiting("b", staleness=1, waited_s=1e9)
    assert pace_round(waiting("a") + late, 2, frozenset(), 60.0) == Pace(0, 1, 2, 60.0)
    assert pace_round(waiting("a", "c") + late, 2, frozenset(), 60.0).take == 3


def test_a_round_goes_on_without_the_slowest_when_the_budget_is_over():
    assert pace_round(waiting("a", waited_s=60.0), 9, frozenset("ab"), 60.0).take == 1


def test_a_version_asks_for_no_more_updates_than_there_are_devices():
    sizes = [automatic_size(num) for num in (0, 1, 2, 3, 4, 5, 20, 21, 50, 1000)]
    assert sizes == [1, 1, 2, 3, 4, 4, 4, 5, 10, 32]
    assert all(automatic_size(num) <= num for num in range(1, 2000))


def test_an_update_waits_as_long_as_it_was_trained_within_bounds():
    assert automatic_budget_s([]) == 60.0
    assert [automatic_budget_s(waiting("a", trained_s=s)) for s in (2.0, 300.0, 1e12)] == [60.0, 300.0, 600.0]
    oldest_first = waiting("a", trained_s=100.0) + waiting("b", trained_s=500.0)
    assert automatic_budget_s(oldest_first) == 100.0


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("num_devices", [1, 2, 3, 7, 50])
def test_no_strategy_waits_for_more_than_one_update_of_every_device(name, num_devices):
    strategy = Pipeline(name, METHODS[name], None, time_budget_s=0.0)
    everybody = waiting(*map(str, range(num_devices)))
    assert strategy.pace(everybody, num_devices).take > 0


@pytest.mark.parametrize("name", METHODS)
def test_no_strategy_waits_for_ever_unless_it_is_told_to(name):
    strategy = Pipeline(name, METHODS[name], buffer_size=9, time_budget_s=None)
    assert strategy.pace(waiting("a", waited_s=600.0), num_devices=1).take == 1
