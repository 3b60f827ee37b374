"""No message waits for a payload's check; what is checked is counted once, over kills too."""

import asyncio
import hashlib
from contextlib import asynccontextmanager, closing
from threading import Event
from typing import NamedTuple

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from coordinator.events.telling import Complaints
from coordinator.intake.admission import Rules, check_payload
from coordinator.intake.allowance import Allowance
from coordinator.intake.attempts import Attempts, Making
from coordinator.intake.norms import Norms
from coordinator.intake.open_uploads import Uploads
from coordinator.intake.roster import Roster
from coordinator.intake.updates import AT_A_TIME, Desk, Intake
from coordinator.ledger.head import Standing
from coordinator.ledger.sqlite import SqliteJournal
from coordinator.limits import Limits
from edge.protocol.chunks import split_chunks
from edge.protocol.codec import encode_adapter
from edge.protocol.merkle import Tree
from edge.protocol.messages import Receipt, Recipe, encode_message
from edge.protocol.signing import Keyring, Opened, Signer, Stamp, new_key, read_signed
from edge.protocol.topics import Topics
from edge.transport.memory import MemoryBroker, MemoryTransport

TOPICS, BASE, SIGNER = Topics("home"), "b" * 64, Signer(new_key(), 1)
ZERO = LoraAdapter({"m": Factors(np.zeros((4, 300), np.float32), np.zeros((200, 4), np.float32), 1.0)})


def payload(seed, times=1):
    generator = np.random.default_rng(seed)
    factors = ZERO.modules["m"]
    a, b = (generator.standard_normal(one.shape, np.float32) for one in (factors.a, factors.b))
    return encode_adapter(LoraAdapter({"m": Factors(times * a, times * b, 1.0)}), "f32")


class Present(NamedTuple):
    """A fleet at version 0, for ever."""

    standing: Standing = Standing(0, {0: 0}, {0: {"r4": "0" * 64}}, {"r4": ZERO})


class Office:
    """A coordinator's intake; checks of the devices in `slow` wait for `gate`."""

    def __init__(self, folder, make_header):
        self.folder, self.make_header, self.broker = folder, make_header, MemoryBroker()
        for name in ("incoming", "updates"):
            (folder / name).mkdir()
        self.slow, self.gate = set(), Event()
        self.limits, self.recipe, self.now = Limits(small_bytes=0), Recipe(steps=20, attempts=0), 0.0
        self.checked, self.receipts = [], []

    @asynccontextmanager
    async def open(self, max_open=64):
        with closing(SqliteJournal(self.folder, "home")) as self.journal:
            async with MemoryTransport(self.broker, "coordinator") as transport:
                self.roster = Roster(self.journal, {}, is_open=True)
                desk = Desk(
                    transport=transport, topics=TOPICS, signer=SIGNER, journal=self.journal,
                    roster=self.roster,
                    uploads=Uploads(
                        self.folder / "incoming", self.folder / "updates", max_open, self.limits
                    ),
                    rules=Rules("home", BASE, 5, 1 << 20, 1e6),
                    allowance=Allowance(self.limits, self.journal, lambda: self.now, chunk_bytes=1024),
                    attempts=Attempts(self.journal, Making(self.recipe, 1000.0)), norms=Norms(10.0),
                    head=Present(), clock=lambda: 1.0,
                    tell=lambda event: None, complain=Complaints(lambda event: None, lambda: self.now),
                )  # fmt: skip
                self.intake = Intake(desk, self.check)
                self.intake.recover()
                loops = [asyncio.create_task(loop) for loop in (*self.intake.loops(), self.listen())]
                await asyncio.sleep(0)
                try:
                    yield self
                finally:
                    for loop in loops:
                        loop.cancel()
                    await asyncio.gather(*loops, return_exceptions=True)

    def check(self, header, content, rules, standing):
        self.checked.append(header.device_id)
        if header.device_id in self.slow:
            assert self.gate.wait(10)
        return check_payload(header, content, rules, standing)

    async def listen(self):
        async with MemoryTransport(self.broker, "ear") as ear:
            await ear.subscribe(TOPICS.device("+", "receipt"))
            async for message in ear.messages():
                signed = read_signed(message.payload)
                self.receipts.append(Keyring().open(message.topic, signed, Receipt).record)

    def header(self, device_id, attempt=0):
        return self.make_header(payload(attempt), device_id=device_id, attempt=attempt)

    def send_header(self, header):
        key = hashlib.sha256(header.device_id.encode()).hexdigest()
        self.roster.enrol(header.device_id, key, 1.0)
        opened = Opened(header, key, Stamp(1, 1), encode_message(header))
        self.intake.take_header(header.device_id, header.update, opened)

    def send(self, device_id, attempt=0):
        """A whole update, as its messages come one after the other."""
        header = self.header(device_id, attempt)
        self.send_whole(header, payload(attempt))
        return header

    def send_whole(self, header, content):
        """Header and chunks of an update that the test has made."""
        self.send_header(header)
        self.send_chunks(header, content)

    def send_chunks(self, header, content=None, but_last=0):
        for number, message in list(enumerate(self.messages(header, content)))[: -but_last or None]:
            self.intake.take_chunk(header.device_id, header.update, number, message)

    def messages(self, header, content=None):
        """The chunks of an update as they come, each with its proof."""
        chunks = list(split_chunks(content or payload(header.attempt), header.chunk_bytes))
        tree = Tree(chunks)
        return [tree.proof(number) + chunk for number, chunk in enumerate(chunks)]

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)

    async def verdicts(self, count):
        await self.until(lambda: len(self.receipts) >= count)
        return [(one.update, one.status) for one in self.receipts]

    def journalled(self):
        return [(one.device, one.attempt, one.status) for one in reversed(self.journal.updates())]


@pytest.fixture
def office(tmp_path, make_header):
    return Office(tmp_path, make_header)


def test_while_a_large_update_is_checked_anothers_is_received_checked_and_receipted(office):
    async def way():
        office.slow = {"x"}
        async with office.open():
            large = office.send("x")
            await office.until(lambda: office.checked == ["x"])
            small = office.send("y")
            assert await office.verdicts(1) == [(small.update, "accepted")]
            office.gate.set()
            assert await office.verdicts(2) == [(small.update, "accepted"), (large.update, "accepted")]
            assert office.journalled() == [("y", 0, "accepted"), ("x", 0, "accepted")]

    asyncio.run(way())


def test_a_small_update_costs_the_disk_nothing_before_its_verdict_and_stands_in_the_journal(office):
    async def way():
        office.limits = Limits()
        async with office.open():
            header = office.header("x")
            office.send_header(header)
            office.send_chunks(header, but_last=1)
            await asyncio.sleep(0.05)
            assert list((office.folder / "incoming").iterdir()) == []
            office.send_chunks(header)
            assert await office.verdicts(1) == [(header.update, "accepted")]
            assert office.journal.payload(header.update) == payload(0)
            assert list((office.folder / "updates").iterdir()) == []

    asyncio.run(way())


def test_a_kill_forgets_a_small_update_that_has_no_verdict_and_its_device_is_asked_for_all_of_it(office):
    async def way():
        office.limits = Limits()
        header = office.header("x")
        async with office.open():
            office.send_header(header)
            office.send_chunks(header, but_last=1)
        async with office.open():
            office.send_header(header)
            office.send_header(header)
            await office.until(lambda: office.receipts)
            assert office.receipts[0].missing == ((0, len(office.messages(header))),)
            office.send_chunks(header)
            assert (await office.verdicts(2))[1] == (header.update, "accepted")

    asyncio.run(way())


def test_of_many_small_updates_all_are_receipted_and_counted_once_whatever_comes_again(office):
    async def way():
        office.limits = Limits(max_waiting=1000)
        async with office.open():
            names = [f"d{number}" for number in range(200)]
            sent = [office.send(name).update for name in names for _ in range(2)]
            found = await office.verdicts(len(names))
            assert {update for update, _ in found} == set(sent)
            for name in names:
                office.send(name)
            found = await office.verdicts(2 * len(names))
            assert {status for _, status in found} == {"accepted"}
            assert len(office.journalled()) == len(names)
            assert office.journal.payloads() == set(sent)

    asyncio.run(way())


def test_of_two_small_ones_that_come_together_for_the_same_attempt_one_counts(office):
    async def way():
        office.limits = Limits()
        async with office.open():
            first = office.send("x")
            other = office.make_header(payload(1), device_id="x", attempt=0)
            office.send_whole(other, payload(1))
            found = dict(await office.verdicts(2))
            assert found == {first.update: "accepted", other.update: "rejected"}

    asyncio.run(way())


def test_a_device_takes_one_place_and_keeps_its_order(office):
    async def way():
        office.slow = {"x"}
        async with office.open():
            mine = [office.send("x", attempt).update for attempt in range(4)]
            await office.until(lambda: office.checked)
            others = [office.send(f"other-{number}").update for number in range(2 * AT_A_TIME)]
            found = await office.verdicts(len(others))
            assert {update for update, _ in found} == set(others)
            assert office.checked.count("x") == 1
            office.gate.set()
            found = await office.verdicts(len(others) + len(mine))
            assert [update for update, _ in found[len(others) :]] == mine

    asyncio.run(way())


def test_only_some_payloads_are_in_memory_at_a_time(office):
    async def way():
        devices = [f"slow-{number}" for number in range(AT_A_TIME + 2)]
        office.slow = set(devices)
        async with office.open():
            for device_id in devices:
                office.send(device_id)
            await office.until(lambda: len(office.checked) == AT_A_TIME)
            await asyncio.sleep(0.05)
            assert len(office.checked) == AT_A_TIME
            office.gate.set()
            await office.verdicts(len(devices))

    asyncio.run(way())


def test_what_comes_again_during_a_check_is_checked_and_counted_once(office):
    async def way():
        office.slow = {"x"}
        async with office.open():
            header = office.send("x")
            await office.until(lambda: office.checked)
            office.send("x")
            office.send("x")
            office.gate.set()
            assert await office.verdicts(1) == [(header.update, "accepted")]
            office.send("x")
            assert await office.verdicts(2) == [(header.update, "accepted")] * 2
            assert office.checked == ["x"]
            assert office.journalled() == [("x", 0, "accepted")]

    asyncio.run(way())


@pytest.mark.parametrize("moment", ["waiting", "in check"])
def test_a_kill_before_the_verdict_loses_nothing(office, moment):
    async def way():
        office.slow = {"x", "y"}
        async with office.open():
            headers = [office.send("x"), office.send("y", 1), office.send("y", 2)]
            if moment == "in check":
                await office.until(lambda: len(office.checked) == 2)
        assert office.receipts == []
        office.gate.set()  # threads of the earlier process; a kill would have ended them
        async with office.open():
            found = await office.verdicts(3)
            assert sorted(found) == sorted((header.update, "accepted") for header in headers)
            assert sorted(office.journalled()) == [
                ("x", 0, "accepted"),
                ("y", 1, "accepted"),
                ("y", 2, "accepted"),
            ]

    asyncio.run(way())


def test_what_is_checked_makes_no_room_and_who_finds_none_is_told_busy(office):
    async def way():
        office.slow = {"x"}
        async with office.open(max_open=1):
            large = office.send("x")
            await office.until(lambda: office.checked)
            small = office.send("y")
            assert await office.verdicts(1) == [(small.update, "busy")]
            office.gate.set()
            assert await office.verdicts(2) == [(small.update, "busy"), (large.update, "accepted")]
            office.send("y")
            assert (await office.verdicts(3))[2:] == [(small.update, "accepted")]

    asyncio.run(way())


def test_a_second_update_for_the_same_attempt_does_not_count(office):
    async def way():
        async with office.open():
            first = office.send("x")
            await office.verdicts(1)
            other = office.make_header(payload(7), device_id="x")
            office.send_header(other)
            assert (await office.verdicts(2))[1:] == [(other.update, "rejected")]
            told = office.receipts[1]
            assert (told.reason, first.update in told.detail) == ("attempt-taken", True)
            assert [one.id for one in office.journal.waiting()] == [first.update]

    asyncio.run(way())


def test_of_two_that_come_together_for_the_same_attempt_one_counts(office):
    async def way():
        office.slow = {"x"}
        async with office.open():
            first = office.send("x")
            await office.until(lambda: office.checked)
            other = office.make_header(payload(7), device_id="x")
            office.send_whole(other, payload(7))
            office.gate.set()
            found = await office.verdicts(2)
            assert found == [(first.update, "accepted"), (other.update, "rejected")]
            assert office.journalled() == [("x", 0, "accepted"), ("x", 0, "rejected")]

    asyncio.run(way())


def test_more_attempts_than_the_recipe_has_are_rejected_before_a_chunk_is_taken(office):
    async def way():
        office.recipe = Recipe(steps=20, attempts=2)
        async with office.open():
            for attempt in range(3):
                office.send("x", attempt)
            assert [status for _, status in await office.verdicts(3)].count("accepted") == 2
            (told,) = [one for one in office.receipts if one.status == "rejected"]
            assert told.reason == "too-many-attempts"
            assert "attempt 2 at version 0, counted from 0, expected at most 1" in told.detail

    asyncio.run(way())


def test_what_a_device_says_of_its_training_is_held_to_the_recipe(office):
    async def way():
        async with office.open():
            header = office.make_header(payload(0), device_id="x", num_examples=2**53, num_steps=20)
            office.send_whole(header, payload(0))
            await office.verdicts(1)
            told = office.receipts[0]
            assert told.status == "accepted"
            assert "num_examples 9007199254740992 counts as 100: more the recipe" in told.detail
            (update,) = office.journal.waiting()
            assert (update.num_examples, update.num_tokens) == (100, 100)
            office.send_header(header)
            await office.verdicts(2)
            assert office.receipts[1].detail == told.detail

    asyncio.run(way())


@pytest.mark.parametrize(
    ("limits", "devices", "told"),
    [
        (Limits(small_bytes=0, max_waiting=2), "xyz", "2 updates wait to be merged, as many as may"),
        (Limits(small_bytes=0, max_waiting_bytes=20_000), "xyz", "bytes wait to be merged, as much as may"),
        (
            Limits(small_bytes=0, max_waiting_per_device=2),
            "xxx",
            "2 updates of x wait to be merged, as many as a device may",
        ),
    ],
)
def test_a_full_buffer_takes_no_chunk_gives_no_verdict_and_forgets_nothing(office, limits, devices, told):
    async def way():
        office.limits = limits
        async with office.open():
            for attempt, device_id in enumerate(devices[:2]):
                office.send(device_id, attempt)
                await office.verdicts(attempt + 1)
            last = office.send(devices[2], 2)
            await office.verdicts(3)
            assert (office.receipts[2].status, told in office.receipts[2].detail) == ("busy", True)
            assert len(office.journal.updates()) == 2
            assert not list((office.folder / "incoming").iterdir())
            for one in office.journal.waiting():  # as a merge does
                office.journal.discard([one.id], "unmergeable", "taken out by hand")
            office.send(devices[2], 2)
            assert (await office.verdicts(4))[3] == (last.update, "accepted")

    asyncio.run(way())


def test_an_update_far_longer_than_the_fleets_is_rejected(office):
    async def way():
        async with office.open():
            for name in "abc":
                office.send(name)
            await office.verdicts(3)
            long = payload(0, times=20)
            header = office.make_header(long, device_id="x")
            office.send_whole(header, long)
            await office.verdicts(4)
            assert office.receipts[3].reason == "norm-too-large"
            assert "by what is usual in this fleet" in office.receipts[3].detail

    asyncio.run(way())


def test_rejections_beyond_a_days_share_are_told_and_counted_and_not_written_down(office):
    async def way():
        office.limits = Limits(small_bytes=0, rejections_per_day=3)
        async with office.open():
            for attempt in range(5):
                office.send_header(
                    office.make_header(payload(0), device_id="x", attempt=attempt, base="0" * 64)
                )
            await office.verdicts(5)
            assert {one.reason for one in office.receipts} == {"foreign-base"}
            assert len(office.journal.updates()) == 3
            office.roster.flush()
            assert [device.num_unlisted for device in office.journal.devices()] == [2]
            office.send("y")
            assert (await office.verdicts(6))[5][1] == "accepted"

    asyncio.run(way())


def test_who_offers_too_often_is_not_answered_and_nobody_else_is_held_up(office):
    async def way():
        office.limits = Limits(small_bytes=0, headers_per_minute=30)
        async with office.open():
            header = office.make_header(payload(0), device_id="x", base="0" * 64)
            office.send_header(header)
            await office.verdicts(1)
            for _ in range(499):
                office.send_header(header)
            honest = office.send("y")
            found = await office.verdicts(6)
            assert found == [(header.update, "rejected")] * 5 + [(honest.update, "accepted")]
            office.now += 60.0
            office.send_header(header)
            await office.verdicts(7)

    asyncio.run(way())
