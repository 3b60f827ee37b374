import math

import pytest

from coordinator.strategies.contract import Account, State
from coordinator.strategies.pipeline_state import Item
from coordinator.strategies.stages.weights import (
    Examples,
    ExponentialFreshness,
    Fairness,
    Freshness,
    HingeFreshness,
    Normalise,
)


def weights(pipeline):
    return [item.weight for item in pipeline.items]


def test_every_update_begins_with_its_share_of_the_buffer(pipeline_of, vector, lengths):
    assert weights(pipeline_of(vector(0), lengths(1, 1, 1, 1))) == [0.25] * 4


def test_examples_weigh_by_their_number(pipeline_of, vector, contribution):
    buffer = [contribution(vector(1), vector(0), num_examples=n) for n in (30, 10)]
    assert weights(Examples()(pipeline_of(vector(0), buffer))) == [15, 5]


def test_in_rounds_an_update_of_an_earlier_one_counts_for_nothing(pipeline_of, vector, contribution):
    buffer = [contribution(vector(1), vector(0), staleness=tau, num_examples=8) for tau in (0, 1)]
    assert weights(Examples()(pipeline_of(vector(0), buffer, trigger="round"))) == [4, 0]
    assert weights(Examples()(pipeline_of(vector(0), buffer, trigger="buffer"))) == [4, 4]


@pytest.mark.parametrize(
    ("freshness", "expected"),
    [
        (Freshness(0.5), [1, 0.5, 0.25]),
        (HingeFreshness(10.0, 4), [1, 1, 1 / 111]),
        (ExponentialFreshness(0.2), [1, math.exp(-0.6), math.exp(-3)]),
    ],
)
def test_freshness_is_s_of_the_staleness(freshness, expected, vector, contribution):
    items = [Item(contribution(vector(1), vector(0), staleness=tau), 1.0, None, None) for tau in (0, 3, 15)]
    assert [freshness.factor(item, None) for item in items] == pytest.approx(expected)


def test_stale_updates_weigh_less(pipeline_of, vector, contribution):
    buffer = [contribution(vector(1), vector(0), staleness=tau) for tau in (0, 3)]
    assert weights(Freshness(0.5)(pipeline_of(vector(0), buffer))) == [0.5, 0.25]


def test_fairness_is_one_over_the_root_of_earlier_uploads(pipeline_of, vector, lengths):
    state = State(9, vector(0), accounts={"of-u0": Account(uploads=8), "of-u1": Account(uploads=3)})
    assert weights(Fairness()(pipeline_of(state, lengths(1, 1, 1)))) == pytest.approx([1 / 9, 1 / 6, 1 / 3])


def test_normalised_weights_add_up_to_one(pipeline_of, vector, lengths):
    assert weights(Normalise()(pipeline_of(vector(0), lengths(1, 1)).weigh([6, 2]))) == [0.75, 0.25]
    assert weights(Normalise()(pipeline_of(vector(0), lengths(1, 1)).weigh([0, 0]))) == [0, 0]
