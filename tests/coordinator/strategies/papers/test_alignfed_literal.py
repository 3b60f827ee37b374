"""The trap in Eq. 5, in numbers: what AlignFed's text does to what its devices agree on."""

import pytest

from coordinator.strategies.contract import State


@pytest.fixture
def merge(strategy, vector, contribution, bowl):
    """`merge((version, x), …)`: the step that a buffer of one-number updates makes at version 5."""

    def run(*updates):
        buffer = [
            contribution(vector(x), vector(0), f"u{n}", base_version=base, staleness=5 - base)
            for n, (base, x) in enumerate(updates)
        ]
        literal = strategy("alignfed-literal", {}, calibrator=bowl(vector(0)))
        state, report = literal.merge(State(5, vector(10)), buffer)
        return state.adapter.modules["m"].a[0, 0] - 10, [share.weight for share in report.shares]

    return run


def test_a_group_of_one_becomes_nothing(merge):
    assert merge((5, 3)) == (0, [1])


def test_two_fresh_devices_that_found_the_same_cancel(merge):
    assert merge((5, 3), (5, 3)) == (0, [0.5, 0.5])


def test_two_fresh_devices_that_agree_on_the_way_cancel_too(merge):
    step, weights = merge((5, 1), (5, 9))  # both lead up, by 5 on average: -4 and 4 are left
    assert (step, weights) == (0, [0.5, 0.5])


def test_a_group_of_one_takes_all_the_weight_for_its_nothing(merge):
    step, weights = merge((4, 7), (5, 1), (5, 9), (5, 2))
    assert weights[0] == pytest.approx(1, abs=1e-6)
    assert step == pytest.approx(0, abs=1e-6)


def test_what_is_left_is_how_devices_differ(merge):
    # deviations -2, -2 and 4 of the mean 3: weights as 1/2, 1/2 and 1/4
    step, weights = merge((5, 1), (5, 1), (5, 7))
    assert weights == pytest.approx([0.4, 0.4, 0.2])
    assert step == pytest.approx(-0.8)  # three devices lead up, and the version goes down
