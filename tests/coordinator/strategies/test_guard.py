import math

import pytest

from coordinator.errors import MergeError
from coordinator.strategies.contract import State
from coordinator.strategies.pipeline import Pipeline
from coordinator.strategies.written import Stages, read_stages


def guarded(calibrator, **stages):
    read = read_stages(Stages(**({"guard": "backtrack"} | stages)))
    return Pipeline("s", read.method, buffer_size=1, calibrator=calibrator)


@pytest.fixture
def merge(vector, contribution):
    """`merge(strategy, step, start=0, **state)`: where a step from `start` ends, the state and the report."""

    def run(strategy, step, start=0.0, **state):
        known = State(7, vector(start), **state)
        found, report = strategy.merge(known, [contribution(vector(step), vector(start))])
        return found.adapter.modules["m"].a[0, 0], found, report

    return run


def test_a_step_that_lowers_the_loss_is_taken_whole(merge, bowl, vector):
    at, state, report = merge(guarded(bowl(vector(3))), 4.0)
    assert (at, state.version, report.step_scale) == (4, 8, 1)
    assert (report.loss_before, report.loss_after) == (4.5, 0.5)


def test_a_step_that_is_too_long_is_halved_until_it_helps(merge, bowl, vector):
    at, state, report = merge(guarded(bowl(vector(1))), 8.0)  # 8 and 4 are farther from 1 than 0, 2 is not
    assert (at, report.step_scale, report.step_norm) == (2, 0.25, 2)
    assert (report.loss_before, report.loss_after, report.loss_refused) == (0.5, 0.5, None)
    assert report.shares[0].weight == state.accounts["of-u"].weight == 0.25


def test_a_step_that_leads_uphill_is_refused_and_says_so(merge, bowl, vector):
    at, state, report = merge(guarded(bowl(vector(1)), guard_tries=2), -8.0)
    assert (at, state.version, report.step_scale, report.step_norm) == (0, 8, 0, 0)
    assert (report.loss_before, report.loss_after, report.loss_refused) == (0.5, 0.5, 12.5)  # at -4
    assert (report.shares[0].weight, report.shares[0].norm) == (0, 8)
    assert state.accounts["of-u"].uploads == 1


def test_a_refused_step_leaves_the_remainder(merge, bowl, vector):
    _, state, report = merge(guarded(bowl(vector(1))), -8.0, remainder=vector(3))
    assert state.remainder == vector(3)
    assert report.remainder_norm == 0  # its b is zero


def test_the_tolerance_lets_a_small_rise_through(merge, bowl, vector):
    start, step = 0.0, -0.1  # from 0.5 to 0.605
    assert merge(guarded(bowl(vector(1)), guard_tolerance=0.3), step, start)[2].step_scale == 1
    assert merge(guarded(bowl(vector(1)), guard_tolerance=0.01), step, start)[2].step_scale == 0


@pytest.mark.parametrize(
    ("target", "reached", "scale", "after"),
    [
        (6.0, 8.0, 4.0, 2.0),  # from a loss of 18: 4 times 2 lowers it, though 3 times would be best
        (3.0, 4.0, 2.0, 0.5),  # 8 raises 4.5 to 12.5
        (1.5, 2.0, 1.0, 0.125),  # 8 and 4 raise 1.125
        (0.75, 1.0, 0.5, 0.03125),  # the last that is tried
    ],
)
def test_the_longest_step_is_tried_first_and_halved_until_it_does_no_harm(
    merge, bowl, vector, target, reached, scale, after
):
    at, state, report = merge(guarded(bowl(vector(target)), guard_longest=4.0), 2.0)
    assert (at, report.step_scale, report.loss_after) == (reached, scale, after)
    assert report.shares[0].weight == state.accounts["of-u"].weight == scale


def test_a_long_first_step_is_refused_when_its_tries_are_used_up(merge, bowl, vector):
    at, state, report = merge(guarded(bowl(vector(0.25)), guard_longest=4.0), 2.0)  # 8, 4, 2, 1
    assert (at, state.version, report.step_scale) == (0, 8, 0)
    assert (report.loss_before, report.loss_refused) == (0.03125, 0.28125)  # at 1
    at, _, report = merge(guarded(bowl(vector(0.25)), guard_longest=4.0, guard_tries=5), 2.0)
    assert (at, report.step_scale) == (0.5, 0.25)


class Numb:
    """A calibrator to which every adapter but one is beyond numbers."""

    def __init__(self, is_good):
        self.is_good = is_good

    def loss(self, adapter):
        return 1.0 if self.is_good(adapter.modules["m"].a[0, 0]) else math.nan


def test_a_step_whose_loss_is_no_number_is_refused(merge):
    at, _, report = merge(guarded(Numb(lambda x: x == 0)), 4.0)
    assert (at, report.step_scale) == (0, 0)


def test_a_version_whose_loss_is_no_number_is_left(merge):
    at, _, report = merge(guarded(Numb(lambda x: 0 < x <= 2)), 4.0)
    assert (at, report.step_scale) == (2, 0.5)


def test_the_guard_asks_for_a_calibration_set(merge):
    with pytest.raises(MergeError, match="guard needs a calibration set; set calibration_data, or leave"):
        merge(guarded(None), 1.0)


def test_without_a_guard_nothing_is_scored(merge, bowl, vector):
    at, _, report = merge(guarded(bowl(vector(1)), guard="none"), -8.0)
    assert (at, report.step_scale, report.loss_before, report.loss_after) == (-8, 1, None, None)
