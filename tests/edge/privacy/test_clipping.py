import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.adapter import Factors, LoraAdapter
from converters.arithmetic import map_entries
from edge.privacy.clipping import clip, clipped_sum, exact_norm, noised


def adapter(a, b):
    return LoraAdapter(
        {"q_proj": Factors(np.full((1, 2), a, np.float32), np.full((2, 1), b, np.float32), 2.0)}
    )


def seeded(size):
    return hashlib.shake_256(b"seed").digest(size)


def test_a_long_delta_is_cut_to_the_bound_and_keeps_its_direction():
    long = adapter(3.0, 4.0)  # norm sqrt(2 * 9 + 2 * 16) = sqrt(50)
    short = clip(long, math.sqrt(2) / 2)
    assert short.modules["q_proj"].a[0, 0] == pytest.approx(0.3)
    assert short.modules["q_proj"].b[0, 0] == pytest.approx(0.4)


def test_a_short_delta_stays_as_it_is():
    short = adapter(0.3, 0.4)
    assert clip(short, 10.0) is short


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e3))
def test_no_rounding_leaves_more_than_the_bound(seed, bound):
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(4, 33)), random.normal(size=(17, 4))
    long = LoraAdapter({"q": Factors(a.astype(np.float32) * 100, b.astype(np.float32) * 100, 1.0)})
    assert exact_norm(clip(long, bound)) <= bound


def test_every_gradient_is_cut_before_they_are_added_up():
    total = clipped_sum([adapter(3.0, 4.0), adapter(0.03, 0.04)], math.sqrt(2) / 2)
    assert total.modules["q_proj"].a[0, 0] == pytest.approx(0.3 + 0.03)


def test_one_gradient_moves_the_sum_by_the_bound_at_most():
    others = [adapter(1.0, -1.0), adapter(0.2, 0.1)]
    with_it = clipped_sum([*others, adapter(1e6, 1e6)], 0.5)
    moved = map_entries(np.subtract, with_it, clipped_sum(others, 0.5))
    assert exact_norm(moved) <= 0.5 * (1 + 1e-6)


def test_noise_has_the_deviation_that_was_asked_for():
    zeros = LoraAdapter({"q": Factors(np.zeros((8, 5000), np.float32), np.zeros((5000, 8), np.float32), 1.0)})
    hidden = noised(zeros, 0.25, seeded).modules["q"]
    for entries in (hidden.a, hidden.b):
        assert entries.std() == pytest.approx(0.25, rel=4 / math.sqrt(2 * entries.size))


def test_what_is_never_sent_gets_no_noise():
    mask = map_entries(np.ones_like, adapter(0.0, 0.0))
    mask.modules["q_proj"].b[:] = 0
    hidden = noised(adapter(0.0, 0.0), 1.0, seeded, mask).modules["q_proj"]
    assert hidden.a.all()
    assert not hidden.b.any()
