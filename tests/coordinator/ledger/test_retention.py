import asyncio

import pytest

from coordinator.intake.open_uploads import Uploads
from coordinator.intake.roster import Roster
from coordinator.ledger.head import Standing
from coordinator.ledger.retention import Retention
from coordinator.ledger.sqlite import SqliteJournal
from edge.protocol.codec import encode_adapter
from edge.protocol.messages import Telemetry, encode_message

STANDING = Standing(5, {number: number for number in range(6)}, {number: {} for number in range(6)}, {})


@pytest.fixture
def header(make_header):
    return lambda base_version: make_header(base_version=base_version)


def telemetry(base_version):
    return Telemetry(base_version=base_version, step=1, steps=2, loss=1.0, tokens_per_s=1.0, memory_bytes=1)


@pytest.fixture
def journal():
    return SqliteJournal(None, "home")


@pytest.fixture
def now():
    """What the clock shows, and the time that has passed."""
    return {"clock": 1e9, "passed": 0.0}


@pytest.fixture
def roster(journal, now):
    found = Roster(journal, {}, True, lambda: now["clock"], lambda: now["passed"])
    for device in ("x", "y"):
        found.enrol(device, "00", 0.0)
    return found


@pytest.fixture
def uploads(tmp_path):
    for name in ("incoming", "updates"):
        (tmp_path / name).mkdir()
    return Uploads(tmp_path / "incoming", tmp_path / "updates", 8)


def test_a_device_holds_what_it_trains_on_and_the_version_before(journal, roster, uploads):
    retention = Retention(journal, roster.held, uploads.base_versions, max_staleness=10, hold_s=60.0)
    assert retention.held(STANDING) == set()
    for version in (1, 1, 2, 4):
        roster.follow("x", telemetry(version), 0.0)
    roster.follow("stranger", telemetry(0), 0.0)
    assert retention.held(STANDING) == {2, 4}


def test_what_would_be_too_stale_by_then_is_held_by_nobody(journal, roster, uploads):
    roster.hold("x", 3, 0.0)
    roster.hold("y", 2, 0.0)
    retention = Retention(journal, roster.held, uploads.base_versions, max_staleness=3, hold_s=60.0)
    assert retention.held(STANDING) == {3}  # 2 is 3 versions old now, and 4 once the next is made


@pytest.mark.parametrize("set_by_s", [0.0, 86_400.0, -86_400.0])
def test_a_device_that_is_away_for_long_holds_nothing_wherever_the_clock_was_set(
    journal, roster, uploads, now, set_by_s
):
    roster.hold("x", 3, now["clock"])
    now["passed"], now["clock"] = 30.0, now["clock"] + set_by_s
    roster.hold("y", 2, now["clock"])
    retention = Retention(journal, roster.held, uploads.base_versions, max_staleness=10, hold_s=60.0)
    for passed, held in ((60.0, {2, 3}), (61.0, {2}), (91.0, set())):
        now["passed"] = passed
        assert retention.held(STANDING) == held


@pytest.mark.parametrize("set_by_s", [0.0, 86_400.0, -86_400.0])
def test_over_a_restart_a_silence_is_at_least_none_and_at_most_half(journal, roster, set_by_s):
    roster.hold("x", 3, 1e9)
    roster.flush()
    passed = [0.0]
    later = Roster(journal, {}, True, lambda: 1e9 + set_by_s, lambda: passed[0])
    assert later.held(60.0) == {3}
    passed[0] = 29.0
    assert later.held(60.0) == {3}
    passed[0] = 61.0
    assert later.held(60.0) == set()


def test_a_version_that_a_rollback_took_out_of_the_line_is_held_by_nobody(journal, roster, uploads):
    roster.hold("x", 3, 0.0)
    retention = Retention(journal, roster.held, uploads.base_versions, max_staleness=10, hold_s=60.0)
    assert retention.held(Standing(5, {5: 1, 0: 0}, {0: {}, 3: {}, 5: {}}, {})) == set()


def test_updates_that_wait_or_are_being_received_hold_their_versions(journal, roster, uploads, header):
    journal.record(header(0), 0.0)
    uploads.begin(header(2), encode_message(header(2)))
    retention = Retention(journal, roster.held, uploads.base_versions, max_staleness=4, hold_s=60.0)
    assert retention.held(STANDING) == {
        0,
        2,
    }  # what was accepted is merged, however stale it is by then


def test_who_holds_what_outlives_a_restart(journal, roster):
    roster.hold("x", 3, 5.0)
    roster.hold("x", 7, 6.0)
    roster.flush()
    assert [device.held for device in journal.devices()] == [(3, 7), ()]
    assert Roster(journal, {}, is_open=True).held(60.0) == {3, 7}


@pytest.mark.parametrize("is_away", [False, True])
def test_a_slow_devices_update_counts_though_newer_versions_lost_their_turn(fleet, is_away):
    async def scenario():
        settings = {"buffer_size": 1, "keep_versions": 1, "max_staleness": 3, "hold_s": 60.0}
        async with (
            fleet.serving(**settings),
            fleet.device("x").joined() as x,
            fleet.device("y").joined() as y,
        ):
            slow = await y.manifest(tier="r2")
            payload = encode_adapter(await y.download(slow), "f32")  # any tensors of these shapes
            fleet.now += 61.0 if is_away else 0.0
            for version in range(3):
                await x.teach(seed=version, version=version)
            await x.manifest(3)
            with fleet.opened() as (_, versions):
                assert (0 in [one.version for one in versions.kept()]) is not is_away
            receipt = await y.upload(y.header(slow, payload), payload)
            assert (receipt.status, receipt.reason) == (
                ("rejected", "unknown-version") if is_away else ("accepted", None)
            )

    asyncio.run(scenario())
