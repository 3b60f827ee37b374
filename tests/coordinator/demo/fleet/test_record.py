import pytest

from coordinator.demo.fleet.record import FleetRecord, is_done, read_record
from coordinator.demo.household import FLEET
from coordinator.demo.plan import DemoPlan, Member
from coordinator.ledger.records import Update, Version


def update(device: str, second: int, staleness: int, loss: float | None) -> Update:
    return Update(
        id="0" * 32,
        device=device,
        tier="r8",
        base_version=0,
        attempt=1,
        sha256="0" * 64,
        encoding="f16",
        size_bytes=1,
        num_examples=1,
        num_tokens=1,
        num_steps=5,
        seconds=1.0,
        loss_before=loss,
        loss_after=0.0,
        received_at=100.0 + second,
        status="accepted",
        reason=None,
        detail="",
        merged_into=1,
        staleness=staleness,
        weight=0.5,
    )


def version(number: int, second: int, loss: float | None, exact: float | None = None) -> Version:
    return Version(number, None, number, 100.0 + second, "", None, {}, None, True, loss, exact)


@pytest.fixture
def record():
    updates = [update("flat", 2, 0, 3.0), update("farm", 3, 1, None), update("flat", 5, 2, 1.0)]
    return FleetRecord([version(0, 0, 4.0), version(1, 6, None)], updates)


def test_steps_are_those_of_merged_updates(record):
    assert [record.num_steps(name) for name in ("flat", "farm", "boat")] == [10, 5, 0]


def test_time_counts_from_version_zero(record):
    assert [(point.version, point.seconds, point.loss) for point in record.version_points()] == [
        (0, 0.0, 4.0),
        (1, 6.0, None),
    ]


def test_an_update_without_a_loss_is_not_drawn(record):
    assert [
        (point.device_id, point.seconds, point.staleness, point.loss) for point in record.update_points()
    ] == [
        ("flat", 2.0, 0, 3.0),
        ("flat", 5.0, 2, 1.0),
    ]


PLAN = DemoPlan(
    tuple(Member(home, "toy", 1.0) for home in FLEET[:2]), (), num_versions=8, min_updates=1, num_steady=3
)
SHARED = [update("flat", 2, 0, 3.0), update("farm", 3, 1, None)]


def record_of(shares, updates=SHARED):
    return FleetRecord([version(n, n, 1.0, share) for n, share in enumerate(shares)], updates)


def test_a_fleet_is_done_when_versions_in_a_row_know_enough():
    assert not is_done(record_of([0.0, 1.0, 1.0]), PLAN)
    assert not is_done(record_of([0.0, 1.0, 0.9, 1.0, 1.0]), PLAN)
    assert is_done(record_of([0.0, 1.0, None, 1.0, 1.0]), PLAN)
    assert not is_done(record_of([1.0, 1.0, 1.0], SHARED[:1]), PLAN)


def test_a_fleet_that_learns_slowly_is_done_with_its_last_version():
    assert not is_done(record_of([0.0] * 8), PLAN)
    assert is_done(record_of([0.0] * 9), PLAN)
    assert not is_done(record_of([0.0] * 9, SHARED[:1]), PLAN)


def test_a_coordinator_that_has_not_begun_has_no_record(tmp_path):
    assert read_record(tmp_path) == FleetRecord([], [])
