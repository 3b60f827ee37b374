import numpy as np
import pytest

from benchmarks.studies.privacy.attack import by_likelihood, by_threshold
from benchmarks.studies.privacy.secrets import NUM_CODES, homes, members


def worlds(shift, num_worlds=8, num_codes=200, spread_of_codes=0.0):
    """Losses that training lowered: codes are unlike each other, and members' are lower by `shift`."""
    random = np.random.default_rng(0)
    is_in = random.random((num_worlds, num_codes)) < 0.5
    own = spread_of_codes * random.standard_normal(num_codes)
    return own + shift * is_in + random.standard_normal(is_in.shape), is_in


def test_an_attacker_who_knows_nothing_guesses():
    for attack in (by_threshold, by_likelihood):
        found = attack(*worlds(0.0))
        assert found.auc == pytest.approx(0.5, abs=0.04)
        assert found.caught < 0.03


def test_members_that_stand_apart_are_all_found():
    for attack in (by_threshold, by_likelihood):
        assert attack(*worlds(50.0)) == (1.0, 1.0)


def test_shadows_tell_codes_that_are_easy_anyway_from_those_that_were_trained_on():
    lowered, is_in = worlds(2.0, spread_of_codes=5.0)
    assert by_threshold(lowered, is_in).auc < 0.7
    assert by_likelihood(lowered, is_in).auc > 0.85


def test_ties_count_half():
    found = by_threshold(np.zeros((1, 10)), np.arange(10).reshape(1, 10) < 5)
    assert found == (0.5, 0.0)


def test_half_of_each_devices_codes_are_in_and_other_halves_in_other_worlds():
    first, again, other = members(3, 0, 0), members(3, 0, 0), members(3, 0, 1)
    assert first == again != other
    assert all(sum(of_device) == NUM_CODES // 2 for of_device in first)


def test_no_two_codes_of_a_device_are_about_one_thing():
    for home in homes(4, seed=1):
        assert len({code.prompt for code in home.codes}) == NUM_CODES
