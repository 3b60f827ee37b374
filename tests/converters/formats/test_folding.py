"""One rank and one scale without rounding."""

import numpy as np
import pytest

from converters.adapter import Factors
from converters.formats.folding import fill, fold, unfill

B = np.array([[1.0, -3.0], [0.0, 0.5]], np.float32)


def test_a_power_of_two_is_folded_and_unfolded() -> None:
    folded = fold(B, 6.0, 1.5)
    assert folded is not None
    np.testing.assert_array_equal(folded, 4 * B)
    np.testing.assert_array_equal(fold(folded, 1.5, 6.0), B)


@pytest.mark.parametrize(
    ("scale", "other"), [(3.0, 1.0), (0.0, 1.0), (1.0, 0.0), (2.0**200, 1.0), (2.0**-200, 1.0)]
)
def test_what_would_round_is_not_folded(scale: float, other: float) -> None:
    assert fold(B, scale, other) is None


def test_zeros_fit_every_scale() -> None:
    np.testing.assert_array_equal(fold(0 * B, 3.0, 0.0), 0 * B)


def test_a_filled_rank_computes_the_same_and_is_taken_back() -> None:
    factors = Factors(np.arange(6, dtype=np.float32).reshape(2, 3), B, 1.0)
    filled = fill(factors, 5)
    assert (filled.a.shape, filled.b.shape) == ((5, 3), (2, 5))
    np.testing.assert_array_equal(filled.b @ filled.a, B @ factors.a)
    again = unfill(filled, 2)
    np.testing.assert_array_equal(again.a, factors.a)
    np.testing.assert_array_equal(again.b, factors.b)


def test_what_was_trained_since_is_not_taken_back() -> None:
    filled = fill(Factors(np.ones((2, 3), np.float32), B, 1.0), 3)
    filled.a[2] = 1
    assert unfill(filled, 2) is filled
