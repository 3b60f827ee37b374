"""A schedule is its seed's."""

from benchmarks.faults.schedule import BROKER, COORDINATOR, Wish, draw

DEVICES = ("lamp", "tv")
WISH = Wish(seed=3, kills=200, others=100, span_s=60.0, devices=DEVICES)


def test_the_same_seed_draws_the_same_faults_and_another_draws_others():
    assert draw(WISH) == draw(WISH)
    assert draw(WISH) != draw(Wish(seed=4, kills=200, others=100, span_s=60.0, devices=DEVICES))


def test_a_schedule_holds_what_was_asked_for_in_order_of_time():
    faults = draw(WISH)
    assert sum(fault.is_kill for fault in faults) == 200
    assert len(faults) == 300
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    assert 0 <= faults[0].at_s <= faults[-1].at_s <= 60
    assert {fault.target for fault in faults} == {*DEVICES, COORDINATOR, BROKER}


def test_a_broker_that_keeps_what_it_has_never_forgets():
    keeping = Wish(seed=3, kills=200, others=0, span_s=60.0, devices=DEVICES, loses_persistence=False)
    assert "forget" in {fault.kind for fault in draw(WISH)}
    assert "forget" not in {fault.kind for fault in draw(keeping)}
