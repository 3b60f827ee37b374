"""One suite over every merge."""

import pytest

from coordinator.strategies import kinds
from coordinator.strategies.contract import State
from coordinator.strategies.merges.contract import Terms


@pytest.fixture
def terms(random_adapter, contribution):
    """`terms(weights, tries)`: three updates from two versions on an adapter with a remainder."""
    bases = [random_adapter(2, seed) for seed in (1, 2)]
    items = [contribution(random_adapter(2, 5 + n), bases[n % 2], f"u{n}") for n in range(3)]
    state = State(0, random_adapter(2, 3), random_adapter(1, 4))
    return lambda weights, tries=1: Terms(state, items, weights, remainder_rank=3, tries=tries)


@pytest.mark.parametrize("kind", kinds.MERGES)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.125])
def test_a_part_of_a_step_is_that_step_of_smaller_weights_to_the_last_bit(kind, share, terms):
    merge, weights = kinds.MERGES[kind](), [0.3, 0.7, 1.1]
    prepared = merge.prepare(terms(weights, tries=3))
    prepared.at(1.0)  # what is kept of the first try is used again
    assert prepared.at(share) == merge.prepare(terms([share * weight for weight in weights])).at(1.0)
    assert prepared.at(share) == prepared.at(share)


@pytest.mark.parametrize("kind", kinds.MERGES)
def test_updates_and_the_present_adapter_stay_as_they_are(kind, terms):
    given = terms([0.3, 0.7, 1.1])
    everything = [given.state.adapter, *(one.load_delta() for one in given.items)]
    before = [(f.a.tobytes(), f.b.tobytes()) for one in everything for _, f in one]
    kinds.MERGES[kind]().prepare(given).at(1.0)
    assert [(f.a.tobytes(), f.b.tobytes()) for one in everything for _, f in one] == before
