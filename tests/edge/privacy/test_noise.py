import hashlib
import math

import numpy as np
import pytest

from edge.privacy.noise import GRID_BITS, SYSTEM, add_noise, draw_normal


def stream(seed):
    """Bytes that look random and are the same for a seed."""
    count = 0

    def draw(size):
        nonlocal count
        count += 1
        return hashlib.shake_256(f"{seed} {count}".encode()).digest(size)

    return draw


def test_numbers_are_normal():
    drawn = np.sort(draw_normal(200_001, stream(1)))
    exact = np.array([math.erf(x / math.sqrt(2)) / 2 + 0.5 for x in drawn])
    # Kolmogorov and Smirnov: 1.95 / sqrt(n) is passed by one stream in a thousand; this one is fixed.
    distance = np.abs(exact - np.arange(1, drawn.size + 1) / drawn.size).max()
    assert distance < 1.95 / math.sqrt(drawn.size)


def test_the_two_halves_of_a_draw_are_not_correlated():
    drawn = draw_normal(200_000, stream(2))
    assert abs(np.corrcoef(drawn[:100_000], drawn[100_000:])[0, 1]) < 4 / math.sqrt(100_000)


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_the_ends_of_the_generator_are_finite_numbers(byte):
    assert np.isfinite(draw_normal(6, lambda size: byte * size)).all()


def test_an_odd_count_is_drawn_exactly():
    assert draw_normal(3, stream(3)).shape == (3,)
    assert draw_normal(0, stream(3)).shape == (0,)


def test_the_systems_generator_never_repeats():
    assert not np.array_equal(draw_normal(8, SYSTEM), draw_normal(8, SYSTEM))


def test_sums_lie_on_a_grid_that_does_not_tell_what_the_noise_was_added_to():
    step = 2.0 ** (math.floor(math.log2(0.3)) - GRID_BITS)
    for value in (0.0, 0.1, math.pi):
        sums = add_noise(np.full(1000, value), 0.3, stream(4))
        assert np.array_equal(sums, np.rint(sums / step) * step)
        assert np.array_equal(sums.astype(np.float32), sums)  # and a float holds them exactly


def test_no_deviation_adds_nothing():
    assert np.array_equal(add_noise(np.array([1.5, -2.25]), 0.0, stream(5)), [1.5, -2.25])
