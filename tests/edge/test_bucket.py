from hypothesis import given
from hypothesis import strategies as st

from edge.bucket import Bucket, Buckets, Rate


def test_a_burst_is_taken_at_once_and_then_the_rate():
    bucket = Bucket(Rate(per_s=2, burst=3), now=100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(100.4)
    assert bucket.take(100.5)
    assert bucket.take(1000.0, amount=3)
    assert not bucket.take(1000.0)


def test_what_is_refused_costs_nothing():
    bucket = Bucket(Rate(per_s=1, burst=3), now=0.0)
    assert not bucket.take(0.0, amount=4)
    assert bucket.take(0.0, amount=3)


def test_a_clock_that_was_set_back_stops_nobody():
    bucket = Bucket(Rate(per_s=1, burst=1), now=1e6)
    assert bucket.take(1e6)
    assert not bucket.take(0.0)
    assert bucket.take(1.0)


@given(st.lists(st.floats(0, 10), max_size=50), st.floats(0.1, 5), st.floats(1, 5))
def test_never_is_more_taken_than_burst_and_rate_allow(pauses, per_s, burst):
    bucket, now, taken = Bucket(Rate(per_s, burst), 0.0), 0.0, 0
    for pause in pauses:
        now += pause
        taken += bucket.take(now)
    assert taken <= burst + per_s * now + 1e-6


def test_names_do_not_take_from_each_other_and_only_so_many_are_remembered():
    buckets = Buckets(Rate(per_s=0, burst=1), max_names=2)
    assert buckets.take("x", 0.0)
    assert buckets.take("y", 0.0)
    assert not buckets.take("x", 0.0)
    buckets.take("z", 0.0)  # y was heard longest ago
    assert not buckets.take("x", 0.0)
    assert buckets.take("y", 0.0)
