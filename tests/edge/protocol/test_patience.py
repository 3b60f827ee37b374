"""The wait that follows what answers take; times are computed as RFC 6298 says."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edge.protocol.patience import LEAST_S, MAX_BACKOFF, Patience


def test_nothing_measured_is_the_first_patience():
    assert Patience(10.0).wait_s == 10.0


def test_the_first_answer_counts_whole_and_half_of_it_as_its_variation():
    patience = Patience(10.0)
    patience.measure(2.0)
    assert patience.wait_s == 2.0 + 4 * 1.0


def test_later_answers_move_it_as_the_rfc_says():
    patience = Patience(10.0)
    patience.measure(2.0)
    patience.measure(4.0)
    smooth, variation = 7 / 8 * 2.0 + 1 / 8 * 4.0, 3 / 4 * 1.0 + 1 / 4 * 2.0
    assert patience.wait_s == pytest.approx(smooth + 4 * variation)


def test_quick_answers_never_make_it_hasty():
    patience = Patience(10.0)
    for _ in range(50):
        patience.measure(0.001)
    assert patience.wait_s == LEAST_S


def test_who_was_given_less_than_the_least_has_no_more():
    patience = Patience(0.2)
    patience.measure(0.001)
    assert patience.wait_s == 0.2


def test_silence_doubles_the_wait_up_to_a_bound_until_an_answer_is_measured():
    patience, waits = Patience(10.0), []
    patience.measure(0.001)
    for _ in range(10):
        waits.append(patience.wait_s)
        patience.wear()
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 80.0, 80.0, 80.0]
    patience.measure(0.001)
    assert patience.wait_s == 1.0


@given(st.floats(0.1, 60), st.lists(st.sampled_from(["wear", "restore"]) | st.floats(0, 1e9)))
def test_whatever_comes_the_wait_has_bounds(first_s, news):
    patience = Patience(first_s)
    for one in news:
        patience.measure(one) if isinstance(one, float) else getattr(patience, one)()
        assert min(LEAST_S, first_s) <= patience.wait_s <= MAX_BACKOFF * first_s
