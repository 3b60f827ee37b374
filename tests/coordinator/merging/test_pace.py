import asyncio
from contextlib import AsyncExitStack

import pytest

from coordinator.events.pace import FleetPace, describe_pace
from coordinator.events.records import Stopped
from coordinator.ledger.sqlite import SqliteJournal
from coordinator.merging.pace import PaceNews
from coordinator.observers.status import StatusNotes, read_pace
from coordinator.strategies.contract import Pace


def run(scenario):
    asyncio.run(scenario)


async def joined(stack, *devices):
    return [await stack.enter_async_context(device.joined()) for device in devices]


async def until_said(fleet, text):
    async with asyncio.timeout(10):
        while not any(text in line for line in fleet.said):
            await asyncio.sleep(0.01)


def merged_into(fleet):
    """Devices of the updates of each version."""
    with fleet.opened() as (_, versions):
        return [
            sorted(share.device for share in one.report.shares) for one in versions.history() if one.report
        ]


def test_with_one_device_every_update_makes_a_version(fleet):
    async def scenario():
        async with fleet.serving(buffer_size=None), fleet.device("x").joined() as x:
            for version in range(3):
                await x.teach(seed=version, version=version)
            await x.manifest(version=3)

    run(scenario())
    assert merged_into(fleet) == [["x"]] * 3


def test_with_two_devices_a_version_waits_for_both_and_says_so(fleet):
    async def scenario():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(fleet.serving(buffer_size=None))
            x, y = await joined(stack, fleet.device("x"), fleet.device("y"))
            await until_said(fleet, "0 of 2 updates, 2 devices online")
            for version in range(2):
                await x.teach(seed=1, version=version)
                await y.teach(seed=2, version=version)
            await x.manifest(version=2)

    run(scenario())
    assert merged_into(fleet) == [["x", "y"]] * 2


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_device_that_leaves_is_not_waited_for(fleet, is_killed):
    async def scenario():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(fleet.serving(buffer_size=None))
            async with fleet.device("y").joined():
                (x,) = await joined(stack, fleet.device("x"))
                await until_said(fleet, "0 of 2 updates")
                await x.teach(seed=1)
                await until_said(fleet, "1 of 2 updates")
                if is_killed:
                    fleet.broker.kill("y")
                    await x.manifest(version=1)
            await x.manifest(version=1)

    run(scenario())


def test_a_device_that_joins_in_the_middle_is_counted(fleet):
    async def scenario():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(fleet.serving(buffer_size=None))
            x, y = await joined(stack, fleet.device("x"), fleet.device("y"))
            await until_said(fleet, "0 of 2 updates")
            await x.teach(seed=1)
            await until_said(fleet, "1 of 2 updates")
            (z,) = await joined(stack, fleet.device("z"))
            await until_said(fleet, "1 of 3 updates, 3 devices online")
            await y.teach(seed=2)
            await z.teach(seed=3)
            await x.manifest(version=1)

    run(scenario())
    assert merged_into(fleet) == [["x", "y", "z"]]


def test_a_device_that_is_online_without_training_costs_a_minute_and_no_more(fleet):
    async def scenario():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(fleet.serving(buffer_size=None))
            x, _ = await joined(stack, fleet.device("x"), fleet.device("idle"))
            await until_said(fleet, "0 of 2 updates")
            await x.teach(seed=1)
            await until_said(fleet, "merging in 60 s")
            assert x.manifests["r4"].version == 0
            fleet.now += 60
            await x.manifest(version=1)

    run(scenario())


def test_a_device_that_can_train_no_tier_of_the_fleet_is_not_waited_for(fleet):
    async def scenario():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(fleet.serving(buffer_size=None))
            x, _ = await joined(stack, fleet.device("x"), fleet.device("small", ranks=(1,)))
            told = "0 of 1 update, 2 devices online, 1 of them able to train a tier of this fleet"
            await until_said(fleet, told)
            await x.teach(seed=1)
            await x.manifest(version=1)

    run(scenario())


def test_a_buffer_larger_than_the_fleet_is_said_and_ended_by_the_time_budget(fleet):
    async def scenario():
        async with fleet.serving(buffer_size=4), fleet.device("x").joined() as x:
            await x.teach(seed=1)
            await until_said(fleet, "1 of 4 updates, 1 device online, merging in 60 s")
            fleet.now += 60
            await x.manifest(version=1)

    run(scenario())


def test_a_time_budget_of_zero_waits_for_ever_and_says_so(fleet):
    async def scenario():
        async with fleet.serving(buffer_size=4, time_budget_s=0), fleet.device("x").joined() as x:
            await x.teach(seed=1)
            await until_said(fleet, "waiting for 3 more however long it takes (time_budget_s is 0)")

    run(scenario())


def test_what_waits_over_a_restart_is_waited_for_as_before(fleet):
    async def scenario():
        async with AsyncExitStack() as stack:
            x, y = await joined(stack, fleet.device("x"), fleet.device("y"))
            async with fleet.serving(buffer_size=None):
                await until_said(fleet, "0 of 2 updates")
                await x.teach(seed=1)
                await until_said(fleet, "1 of 2 updates")
            fleet.said.clear()
            async with fleet.serving(buffer_size=None):
                await until_said(fleet, "1 of 2 updates, 2 devices online")
                await y.teach(seed=2)
                await x.manifest(version=1)

    run(scenario())
    assert merged_into(fleet) == [["x", "y"]]


def test_fifty_devices_move_without_a_flag(fleet):
    async def work(device):
        for version in (0, 1):
            manifest = await device.manifest(version)
            assert (await device.teach(seed=1, version=manifest.version))[0].status == "accepted"

    async def scenario():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(fleet.serving(buffer_size=None))
            devices = await joined(stack, *(fleet.device(f"d-{n}") for n in range(50)))
            await until_said(fleet, "50 devices online")
            await asyncio.gather(*(work(device) for device in devices))
            await devices[0].manifest(version=10)

    run(scenario())
    assert [len(devices) for devices in merged_into(fleet)] == [10] * 10


def test_a_round_without_a_cohort_waits_for_those_online_until_its_deadline(fleet):
    async def scenario():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(fleet.serving(buffer_size=None, strategy="fedavg"))
            x, y, _ = await joined(stack, *(fleet.device(name) for name in ("x", "y", "z")))
            await until_said(fleet, "0 of 3 updates, 3 devices online")
            await x.teach(seed=1)
            await y.teach(seed=2)
            await until_said(fleet, "2 of 3 updates, 3 devices online, merging in 60 s")
            fleet.now += 60
            await x.manifest(version=1)

    run(scenario())
    assert merged_into(fleet) == [["x", "y"]]


def test_a_device_whose_accepted_update_is_lost_gets_a_version_to_go_on_from(fleet):
    async def scenario():
        async with fleet.device("x").joined() as x:
            async with fleet.serving(buffer_size=2, limits={"small_bytes": 0}):
                await x.teach(seed=1)
            (payload,) = (fleet.folder / "updates").iterdir()
            payload.write_bytes(b"damaged")
            first = x.manifests["r4"]
            async with fleet.serving(buffer_size=2, limits={"small_bytes": 0}):
                manifest = await x.manifest(version=1)
                assert manifest.sha256 == first.sha256
                await asyncio.sleep(0.3)
                assert x.manifests["r4"].version == 1  # and no more of them

    run(scenario())
    assert any("version 1: version 0 again, for devices to go on from" in line for line in fleet.said)


@pytest.fixture
def journal():
    return SqliteJournal(None, "home")


def test_a_change_is_told_once_and_passing_time_is_none():
    news = PaceNews()
    told = [
        news.next(Pace(0, have, 4, left_s), 2, 2, now, now)
        for have, left_s, now in (
            (0, None, 0.0),
            (1, 60.0, 5.0),
            (1, 30.0, 35.0),
            (2, 25.0, 40.0),
            (0, None, 41.0),
        )
    ]
    assert [one and (one.pace.have, one.is_news) for one in told] == [
        (0, True), (1, True), None, (2, True), (0, False),
    ]  # fmt: skip
    assert news.next(Pace(0, 1, 4, 60.0), 2, 2, 42.0, 42.0).is_news


def test_a_clock_that_was_set_is_noted_at_once_for_status():
    news, day = PaceNews(), 86_400.0
    pace = Pace(0, 1, 4, 60.0)
    assert news.next(pace, 2, 2, 10 * day, 5.0)
    assert news.next(pace, 2, 2, 10 * day + 1, 6.0) is None
    again = news.next(pace, 2, 2, 9 * day, 7.0)
    assert (again.pace.due_at, again.is_news) == (9 * day + 60, False)
    assert not FleetPace(1, 4, 1, 1, None, 10 * day).is_current(9 * day)


def test_the_journal_knows_the_pace_while_the_coordinator_runs(journal):
    news, note = PaceNews(), StatusNotes(journal)
    note(news.next(Pace(0, 1, 4, 40.0), 1, 1, 1000.0, 0.0))
    assert read_pace(journal) == FleetPace(1, 4, 1, 1, 1040.0, 1000.0)
    again = news.next(Pace(0, 1, 4, 40.0), 1, 1, 1100.0, 100.0)
    assert not again.is_news
    note(again)
    assert read_pace(journal).noted_at == 1100.0
    assert read_pace(journal).is_current(1200.0)
    assert not read_pace(journal).is_current(1300.0)
    note(Stopped(3))
    assert read_pace(journal) is None


@pytest.mark.parametrize(
    ("pace", "text"),
    [
        (FleetPace(1, 4, 1, 1, 40.0, 0.0), "1 of 4 updates, 1 device online, merging in 40 s"),
        (FleetPace(1, 4, 2, 2, 400.0, 0.0), "1 of 4 updates, 2 devices online, merging in 7 min"),
        (FleetPace(0, 1, 0, 0, None, 0.0), "0 of 1 update, no devices online"),
    ],
)
def test_the_pace_in_words(pace, text):
    assert describe_pace(pace, 0.0) == text
