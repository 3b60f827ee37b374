import numpy as np
import pytest

from benchmarks.assets import ASSETS
from benchmarks.strategies.lessons import LESSONS, deal, dolly_rows, domain_shares, make_lesson, part_of
from converters.errors import BaseModelError
from coordinator.demo.household import FLEET

needs_assets = pytest.mark.skipif(not ASSETS.exists(), reason="needs ../shared/assets or TUNEFLEET_ASSETS")
NAMES = ["household", *(pytest.param(name, marks=needs_assets) for name in LESSONS if name != "household")]


@pytest.mark.parametrize("name", NAMES)
def test_nobody_trains_on_what_is_tested(name):
    lesson = make_lesson(name, 1)
    held_back = {*lesson.test, *lesson.calibration}
    assert len(lesson.calibration) == (30 if name.startswith("dolly") else 48)
    assert not set(lesson.test) & set(lesson.calibration)
    for device in lesson.devices:
        assert len(device.train) > 0
        assert len(device.test) > 0
        assert not {*device.test} & {*device.train}
        assert not held_back & {*device.train}


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_splits_the_same_way(name):
    assert make_lesson(name, 3).devices == make_lesson(name, 3).devices
    assert make_lesson(name, 3).devices != make_lesson(name, 4).devices


def test_each_phrasing_of_a_home_is_heard_on_one_device():
    for home in FLEET:
        parts = [part_of(home, number) for number in range(3)]
        heard = [phrasing for part in parts for phrasing in part.phrasings]
        assert sorted(heard) == sorted(home.phrasings)
        assert all(len(part.rooms) == 3 for part in parts)


def test_long_rows_are_left_out_and_contexts_cut():
    rows = [
        {"instruction": "Why?", "context": "x" * 500, "response": "Because."},
        {"instruction": "Why?", "context": "", "response": "y" * 500},
        {"instruction": "Why?", "context": "", "response": " "},
    ]
    (row,) = dolly_rows(rows)
    assert row.prompt == f"Why?\n{'x' * 120}\n\n"
    assert row.completion == "Because."


def test_without_a_mixture_a_device_has_one_domain():
    shares = domain_shares(None, 4, 2, np.random.default_rng(0))
    assert shares.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]


def test_a_small_alpha_gives_a_device_few_domains():
    few, many = (domain_shares(alpha, 200, 10, np.random.default_rng(0)) for alpha in (0.1, 10.0))
    assert few.sum(1) == pytest.approx(1)
    assert few.max(1).mean() > 0.6 > 0.3 > many.max(1).mean()


def test_rows_are_dealt_once_until_their_domain_runs_out():
    pairs = [(f"say {number}", "hello") for number in range(6)]
    shares = np.ones((3, 1))
    first, second, third = deal(pairs, {"hello": 0}, shares, 3, np.random.default_rng(0))
    assert not set(first) & set(second)
    assert set(first) | set(second) == set(third) | set(first) | set(second)
    assert len(set(first) | set(second)) == 6


def test_missing_assets_are_one_clear_sentence(tmp_path):
    with pytest.raises(BaseModelError, match=r"lesson dolly needs \.\./shared/assets or TUNEFLEET_ASSETS"):
        make_lesson("dolly", 0, tmp_path / "nowhere")
