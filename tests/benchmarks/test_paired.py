import pytest

from benchmarks.paired import bootstrap, paired_difference

pytest.importorskip("scipy", reason="needs the bench extra")


def test_students_interval_by_hand():
    found = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])  # differences 1, 2, 3
    assert found.mean == 2.0
    half = 4.302653 * 1.0 / 3**0.5  # two degrees of freedom, deviation 1
    assert (found.student.low, found.student.high) == pytest.approx((2 - half, 2 + half))
    assert not found.student.excludes_zero


def test_the_bootstrap_resamples_means():
    found = bootstrap([1.0, 2.0, 3.0])
    assert 1.0 <= found.low < 2.0 < found.high <= 3.0  # 1/27 of all resamples are three times the least
    assert found == bootstrap([1.0, 2.0, 3.0])


def test_the_bootstrap_of_equal_differences_is_a_point():
    found = paired_difference([1.5, 2.5], [1.0, 2.0])
    assert (found.bootstrap.low, found.bootstrap.high) == (0.5, 0.5)
    assert found.is_significant


def test_a_verdict_needs_both_intervals():
    found = paired_difference([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert found.bootstrap.excludes_zero
    assert not found.is_significant


def test_one_pair_tells_nothing():
    with pytest.raises(ValueError, match="got 1 pairs, expected at least 2"):
        paired_difference([0.0], [1.0])
