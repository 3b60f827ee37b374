"""How a device gets into a fleet, and out of it, while both run: real coordinator, real clients."""

import asyncio
import time
from contextlib import closing

import pytest

from coordinator.access.tokens import new_token
from coordinator.ledger.sqlite import SqliteJournal
from edge.device.enrolling import enroll, rotate
from edge.errors import Rejected
from edge.protocol.enrolment import read_token, write_token
from edge.protocol.topics import Topics
from edge.storage.enrolment import read_enrolment
from edge.transport.memory import MemoryTransport


def access(home):
    """The journal as another process has it open: `tunefleet device …`."""
    return closing(SqliteJournal(home.folder / "coordinator"))


def token(home, **changes):
    settings = {"uses": 1, "expires": "1h", "device_id": None} | changes
    with access(home) as journal:
        return new_token(home.folder / "coordinator", journal, at=time.time(), **settings)


def key_of(home, device="lamp"):
    return enroll(home.folder / device, device, "home", None).key


async def until_said(home, text):
    async with asyncio.timeout(60):
        while not any(text in line for line in home.said):
            await asyncio.sleep(0.02)


async def until_ended(device):
    """How a client ends by itself."""
    async with asyncio.timeout(60):
        with pytest.raises(Rejected) as caught:
            await device.client.run()
    return caught.value


def test_a_device_that_is_allowed_by_hand_while_it_waits_goes_to_work(home):
    async def way():
        key = key_of(home)
        async with home.coordinator(enrolment="closed"), home.running(max_tasks=1) as device:
            await until_said(home, "was not let in, and enrolment is closed")
            with access(home) as journal:
                journal.access.allow({"lamp": key}, time.time())
            await device.until("accepted")

    asyncio.run(way())


def test_a_token_lets_its_device_in_and_no_other(home):
    async def way():
        async with home.coordinator(enrolment="closed") as coordinator:
            text = write_token(token(home))
            made = enroll(home.folder / "lamp", "lamp", None, read_token(text))
            assert made.coordinator_key
            async with home.running(max_tasks=1) as device:
                assert (await device.until("enrolled")).text == "lamp is let in by its token"
                await device.until("accepted")
                assert device.state.memory.coordinator_key == made.coordinator_key
            assert read_enrolment(home.folder / "lamp") is None
            enroll(home.folder / "kettle", "kettle", None, read_token(text))
            async with home.running("kettle"):
                await until_said(home, "which was used up")
            assert coordinator

    asyncio.run(way())


def test_a_device_with_a_token_follows_no_coordinator_but_the_one_that_made_it(home, tmp_path):
    async def way():
        async with home.coordinator():
            pass
        made = token(home)
        async with home.coordinator(state=str(tmp_path / "impostor")):
            enroll(home.folder / "lamp", "lamp", None, made)
            async with home.running() as device:
                await device.until("warning")
                assert "the coordinator's key is" in device.of("warning")[0].text
                assert not device.of("training")

    asyncio.run(way())


def test_a_ban_ends_a_device_at_once_with_one_line_and_it_keeps_its_spool(home):
    async def way():
        async with (
            home.coordinator(buffer_size=3, recipe={"steps": 3, "attempts": 2}),
            home.device() as device,
        ):
            running = asyncio.create_task(until_ended(device))
            await device.until("accepted", 2)
            with access(home) as journal:
                assert journal.access.ban("lamp", time.time()) == 2
                assert journal.waiting() == []
            ended = await running
            assert ended.reason == "banned"
            assert "lamp was banned from fleet home by its owner" in str(ended)
            await until_said(home, "device lamp may speak no longer")
        async with home.coordinator(), home.device() as device:  # for good
            assert (await until_ended(device)).reason == "banned"
            with access(home) as journal:
                assert journal.access.unban("lamp")
        async with home.coordinator(), home.running(max_tasks=1) as device:
            await device.until("accepted")

    asyncio.run(way())


def test_a_device_with_a_new_key_keeps_its_history(home):
    async def way():
        async with home.coordinator(enrolment="closed", devices={"lamp": key_of(home)}):
            async with home.running(max_tasks=1) as device:
                await device.until("accepted")
            report, word = rotate(home.folder / "lamp", None, None)
            assert (report.device, report.fleet, len(word.rotations)) == ("lamp", "home", 1)
            async with home.running(max_tasks=1) as device:
                assert (await device.until("enrolled")).text == "lamp is known by its new key"
                await device.until("accepted")
        with access(home) as journal:
            (device,) = journal.devices()
            assert (device.key, journal.tallies()["lamp"].accepted) == (report.key, 2)

    asyncio.run(way())


def test_a_forgotten_device_leaves_nothing_on_the_broker(home):
    async def way():
        async with home.coordinator():
            async with home.running(max_tasks=1) as device:
                await device.until("accepted")
            with access(home) as journal:
                assert journal.access.forget("lamp")
            await until_said(home, "device lamp may speak no longer")
            async with asyncio.timeout(10):
                while True:
                    with access(home) as journal:
                        if not journal.access.forgotten():
                            break
                    await asyncio.sleep(0.02)
        async with MemoryTransport(home.broker, "ear") as ear:
            for kind in ("hello", "state", "up/+/+"):
                await ear.subscribe(Topics("home").device("lamp", kind))
            await ear.publish(Topics("home").up("lamp", "0" * 32, "header"), b"the last")
            assert (await anext(ear.messages())).payload == b"the last"

    asyncio.run(way())


def test_a_list_that_loses_a_device_shuts_it_out_and_a_broken_one_changes_nothing(home):
    async def way():
        key, listed = key_of(home), home.folder / "devices.txt"
        listed.write_text(f"lamp {key}\n")
        async with home.coordinator(enrolment="closed", devices_file=str(listed)):
            async with home.running(max_tasks=1) as device:
                await device.until("accepted")
            listed.write_text("lamp what\n")
            await until_said(home, "who may speak stays as it was")
            listed.write_text("# nobody\n")
            await until_said(home, "device lamp may speak no longer")

    asyncio.run(way())
