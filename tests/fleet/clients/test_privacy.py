"""Privacy over a whole fleet: terms in the manifest, wishes on the device, an account between them."""

import asyncio
import json
import sqlite3
from contextlib import closing

import pytest

from edge.device.budget import FILE
from edge.errors import DiskFull
from edge.privacy.accounting import epsilon_of
from edge.storage.spool import Spool

HIDING = {"unit": "device", "clip_norm": 0.5, "noise": 2.0}


def spendings(home, device="lamp"):
    path = home.folder / device / FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def until_waiting(device, text):
    """The device waits, for a reason with this text."""
    async with asyncio.timeout(60):
        while not any(text in event.text for event in device.of("waiting")):
            device.told.clear()
            await device.told.wait()


def test_a_device_spends_its_budget_and_then_waits_and_says_so_once(home):
    async def way():
        wishes = {"unit": "device", "epsilon": 3.0}
        async with home.coordinator(privacy=HIDING), home.device(privacy=wishes) as device:
            running = asyncio.create_task(device.client.run())
            await until_waiting(device, "the budget is 3")
            device.client.stop()
            await running
            return device

    device = asyncio.run(way())
    spent = spendings(home)
    assert len(spent) == len(device.of("accepted")) >= 2
    assert epsilon_of((len(spent) / 4) ** 0.5, 1e-5) <= 3.0 < epsilon_of(((len(spent) + 1) / 4) ** 0.5, 1e-5)
    refusals = [event.text for event in device.of("waiting") if "the budget is 3" in event.text]
    assert len(refusals) == 1
    told = device.of("spooled")[-1]
    assert "privacy spent: epsilon" in told.text
    assert told.facts["epsilon"] <= 3.0


def test_a_fleet_that_hides_less_than_a_device_wants_gets_no_update_of_it(home):
    async def way():
        async with home.coordinator(), home.device(privacy={"unit": "example"}) as device:
            running = asyncio.create_task(device.client.run())
            await until_waiting(device, "the fleet asks for privacy of unit none, this device wants example")
            device.client.stop()
            await running
            return device

    device = asyncio.run(way())
    assert not device.of("spooled")
    assert not device.of("training")
    assert not spendings(home)


class FullOnce(Spool):
    """A spool whose disk is full the first time."""

    is_full = True

    def add(self, *args, **settings):
        if self.is_full:
            self.is_full = False
            raise DiskFull("no room for an update")
        super().add(*args, **settings)


def test_an_update_is_paid_for_before_it_is_spooled_and_once(home):
    async def way():
        async with home.coordinator(privacy=HIDING), home.device(max_tasks=1, spool=FullOnce) as device:
            running = asyncio.create_task(device.client.run())
            await device.until("warning")
            assert len(spendings(home)) == 1  # and nothing is spooled
            await running
            return device

    device = asyncio.run(way())
    assert len(device.of("accepted")) == 1
    assert len(spendings(home)) == 1


@pytest.mark.parametrize("unit", ["device", "example"])
def test_a_hidden_update_is_accepted_and_tells_nothing_exact(home, unit):
    async def way():
        async with home.coordinator(privacy=HIDING | {"unit": unit}), home.device(max_tasks=1) as device:
            await device.client.run()
            return device

    device = asyncio.run(way())
    assert len(device.of("accepted")) == 1
    assert device.of("spooled")[0].facts["loss_before"] > 0  # here it is told
    with closing(sqlite3.connect(home.folder / "coordinator" / "journal.sqlite")) as db:
        told = db.execute("SELECT num_examples, num_tokens, loss_before FROM updates").fetchall()
    assert told == [(3, 3, None)]
    assert (home.folder / "lamp" / "residual-noised.safetensors").exists()
    assert spendings(home)[0]["unit"] == unit
    assert spendings(home)[0]["num_steps"] == 3


def test_where_the_coordinator_adds_noise_devices_clip_and_versions_differ_from_their_updates(home):
    async def way():
        terms = HIDING | {"at": "coordinator"}
        async with (
            home.coordinator(privacy=terms, space="factors", max_versions=1),
            home.device(max_tasks=1, privacy={"unit": "device", "at": "coordinator"}) as device,
        ):
            await device.client.run()
            return device

    device = asyncio.run(way())
    assert len(device.of("accepted")) == 1
    assert spendings(home)[0]["place"] == "coordinator"
    assert not (home.folder / "lamp" / "residual.safetensors").exists()
