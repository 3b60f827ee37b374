import pytest

from coordinator.strategies.choice import METHODS
from coordinator.strategies.contract import State
from coordinator.strategies.pipeline import Pipeline


def weights(report):
    return {share.update: pytest.approx(share.weight) for share in report.shares}


def merged(vector, contribution, examples, name="fedavg", ratio=4.0):
    """Weights after a merge of one update a device, `device number: examples`; steps of 1."""
    buffer = [
        contribution(vector(1), vector(0), f"u{number}", device=device, num_examples=count)
        for number, (device, count) in enumerate(examples)
    ]
    strategy = Pipeline(name, METHODS[name], len(buffer), max_weight_ratio=ratio)
    return strategy.merge(State(0, vector(0)), buffer)


def test_a_device_that_claims_a_million_examples_has_four_times_the_others(vector, contribution):
    examples = [("a", 100), ("b", 100), ("c", 100), ("x", 2**53)]
    state, report = merged(vector, contribution, examples)
    assert weights(report) == {"u0": 1 / 7, "u1": 1 / 7, "u2": 1 / 7, "u3": 4 / 7}
    assert [share.reason for share in report.shares] == [
        "",
        "",
        "",
        "weight cut to 4 times the median device's",
    ]
    assert state.adapter == vector(1)  # the weights still add up to one


def test_of_two_devices_neither_has_all(vector, contribution):
    _, report = merged(vector, contribution, [("a", 100), ("x", 2**53)])
    assert weights(report) == {"u0": 0.2, "u1": 0.8}


def test_many_updates_are_no_more_than_one(vector, contribution):
    examples = [("a", 1), ("b", 1), *[("x", 1)] * 16]
    _, report = merged(vector, contribution, examples, "fedbuff")
    own = sum(share.weight for share in report.shares if share.device == "x")
    assert own / sum(share.weight for share in report.shares) == pytest.approx(4 / 6)


def test_what_is_within_the_ratio_stays_as_it_was(vector, contribution):
    _, report = merged(vector, contribution, [("a", 100), ("b", 200), ("c", 400)])
    assert weights(report) == {"u0": 1 / 7, "u1": 2 / 7, "u2": 4 / 7}
    assert not any(share.reason for share in report.shares)


def test_a_device_alone_has_all(vector, contribution):
    _, report = merged(vector, contribution, [("x", 5), ("x", 5)])
    assert weights(report) == {"u0": 0.5, "u1": 0.5}
