import math

import pytest

from coordinator.strategies.contract import Account, State
from coordinator.strategies.stages.weights import ExponentialFreshness


@pytest.fixture
def merge(strategy, vector, contribution, bowl):
    """`merge(name, (device, version, x), …)`: where a buffer of one-number updates leads from 0."""

    def run(name, *updates, version=5, accounts=None, start=0.0):
        buffer = [
            contribution(
                vector(x), vector(0), f"u{n}", device=device, base_version=base, staleness=version - base
            )
            for n, (device, base, x) in enumerate(updates)
        ]
        state = State(version, vector(start), accounts=accounts or {})
        found, report = strategy(name, {}, calibrator=bowl(vector(0))).merge(state, buffer)
        return found.adapter.modules["m"].a[0, 0], [share.weight for share in report.shares]

    return run


def test_two_fresh_devices_that_found_the_same_are_followed(merge):
    assert merge("alignfed", ("x", 5, 4), ("y", 5, 4)) == (4, [0.5, 0.5])


def test_a_fresh_device_alone_is_followed(merge):
    assert merge("alignfed", ("x", 5, 4)) == (4, [1])


def test_the_mean_is_kept_and_the_weights_are_those_of_equation_7(merge):
    # mean 4, deviations -2, 0 and 2; the floor is 0.2, so 1/|D| is 0.5, 5, 0.5; y was heard three times
    at, weights = merge("alignfed", ("x", 5, 2), ("y", 5, 4), ("z", 5, 6), accounts={"y": Account(uploads=3)})
    assert weights == pytest.approx([0.5 / 3.5, 2.5 / 3.5, 0.5 / 3.5])
    assert at == pytest.approx(4)


def test_fresh_groups_of_one_step_alike(merge):
    at, weights = merge("alignfed", ("x", 5, 3), ("y", 5, 5), version=5)
    assert weights == [0.5, 0.5]  # deviations -1 and 1
    assert at == 4


def test_it_parts_from_the_text_in_the_mean_alone(merge):
    updates = (("x", 5, 2), ("y", 5, 6), ("z", 5, 7))
    at, weights = merge("alignfed", *updates)
    literally, same_weights = merge("alignfed-literal", *updates)
    assert weights == pytest.approx(same_weights)
    assert at - literally == pytest.approx(5)  # the mean


def test_freshness_is_exponential(strategy):
    assert ExponentialFreshness(0.2) in strategy("alignfed").method.order
    assert math.exp(-0.2 * 5) == pytest.approx(0.37, abs=0.01)
