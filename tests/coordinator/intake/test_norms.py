from contextlib import closing

import pytest

from coordinator.intake.norms import Norms, open_norms
from coordinator.ledger.sqlite import SqliteJournal
from edge.privacy.terms import Terms
from edge.protocol.messages import Recipe


def test_the_bound_is_so_many_times_the_median_of_the_devices():
    norms = Norms(10.0, [("a", 4, 1.0), ("b", 4, 2.0), ("c", 4, 9.0)])
    assert norms.bound(4) == 20.0
    assert norms.bound(16) == 40.0  # twice the entries in each direction: the root of four times the rank


def test_before_three_devices_are_known_there_is_no_measure():
    norms = Norms(10.0, [("a", 4, 1.0), ("a", 4, 1.0), ("a", 4, 1.0), ("b", 4, 2.0)])
    assert norms.bound(4) is None
    norms.add("c", 4, 1.0)
    assert norms.bound(4) == 10.0


def test_fewer_than_half_of_the_devices_move_it_nowhere_however_much_they_send():
    norms = Norms(10.0, [(name, 4, 1.0) for name in "abc"])
    for _ in range(500):
        for name in "xy":
            norms.add(name, 4, 999.0)
    assert norms.bound(4) == 10.0


def test_a_fleet_whose_updates_are_all_zero_bounds_nothing():
    assert Norms(10.0, [(name, 4, 0.0) for name in "abc"]).bound(4) is None


def test_noise_that_a_fleet_asks_for_from_now_on_is_not_measured_by_updates_without(tmp_path, make_header):
    recipe, terms = Recipe(steps=20), Terms(unit="device")
    with closing(SqliteJournal(tmp_path, "home")) as journal:
        open_norms(journal, recipe, 10.0)
        for name in "abc":
            journal.record(make_header(device_id=name), 0.0, norm=1.0)
        assert open_norms(journal, recipe, 10.0, terms).bound(4) is None


@pytest.mark.parametrize("is_changed", [False, True])
def test_norms_outlast_a_restart_until_the_recipe_changes(tmp_path, make_header, is_changed):
    recipe = Recipe(steps=20)
    with closing(SqliteJournal(tmp_path, "home")) as journal:
        assert open_norms(journal, recipe, 10.0).bound(4) is None
        for name in "abc":
            journal.record(make_header(device_id=name), 0.0, norm=1.0)
        later = Recipe(steps=40) if is_changed else recipe
        for _ in range(2):
            bound = open_norms(journal, later, 10.0).bound(4)
            assert bound == (None if is_changed else pytest.approx(10.0))
        journal.record(make_header(device_id="d"), 0.0, norm=1.0)


def test_where_tasks_are_so_many_seconds_a_fast_device_may_go_further(tmp_path, make_header):
    with closing(SqliteJournal(tmp_path, "home")) as journal:
        recipe = Recipe(steps=0, seconds=60.0)
        open_norms(journal, recipe, 10.0)
        for name in "abc":
            journal.record(make_header(device_id=name), 0.0, norm=1.0)
        assert open_norms(journal, recipe, 10.0).bound(4) == pytest.approx(100.0)
