"""No message waits for a payload's check; what is checked is counted once, over kills too."""

import asyncio
from contextlib import asynccontextmanager, closing
from threading import Event
from typing import NamedTuple

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from coordinator.intake.admission import Rules, check_payload
from coordinator.intake.open_uploads import Uploads
from coordinator.intake.roster import Roster
from coordinator.intake.updates import AT_A_TIME, Desk, Intake
from coordinator.ledger.head import Standing
from coordinator.ledger.sqlite import SqliteJournal
from edge.protocol.chunks import split_chunks
from edge.protocol.codec import encode_adapter
from edge.protocol.merkle import Tree
from edge.protocol.messages import Receipt, encode_message
from edge.protocol.signing import Keyring, Opened, Signer, Stamp, new_key, read_signed
from edge.protocol.topics import Topics
from edge.transport.memory import MemoryBroker, MemoryTransport

TOPICS, BASE, SIGNER = Topics("home"), "b" * 64, Signer(new_key(), 1)
ZERO = LoraAdapter({"m": Factors(np.zeros((4, 300), np.float32), np.zeros((200, 4), np.float32), 1.0)})


def payload(seed):
    generator = np.random.default_rng(seed)
    factors = ZERO.modules["m"]
    a, b = (generator.standard_normal(one.shape, np.float32) for one in (factors.a, factors.b))
    return encode_adapter(LoraAdapter({"m": Factors(a, b, 1.0)}), "f32")


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
        self.checked, self.receipts = [], []

    @asynccontextmanager
    async def open(self, max_open=64):
        with closing(SqliteJournal(self.folder, "home")) as self.journal:
            async with MemoryTransport(self.broker, "coordinator") as transport:
                self.roster = Roster(self.journal, {}, is_open=True)
                desk = Desk(
                    transport=transport, topics=TOPICS, signer=SIGNER, journal=self.journal,
                    roster=self.roster,
                    uploads=Uploads(self.folder / "incoming", self.folder / "updates", max_open),
                    rules=Rules("home", BASE, 5, 1 << 20, 1e6), head=Present(), clock=lambda: 1.0,
                    tell=lambda event: None, complain=lambda fault: None,
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
        self.roster.enrol(header.device_id, "ab" * 32, 1.0)
        opened = Opened(header, "ab" * 32, Stamp(1, 1), encode_message(header))
        self.intake.take_header(header.device_id, header.update, opened)

    def send(self, device_id, attempt=0):
        """A whole update, as its messages come one after the other."""
        header = self.header(device_id, attempt)
        self.send_header(header)
        chunks = list(split_chunks(payload(attempt), header.chunk_bytes))
        tree = Tree(chunks)
        for number, chunk in enumerate(chunks):
            self.intake.take_chunk(device_id, header.update, number, tree.proof(number) + chunk)
        return header

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


def test_what_is_checked_makes_no_room_and_who_finds_none_asks_again(office):
    async def way():
        office.slow = {"x"}
        async with office.open(max_open=1):
            large = office.send("x")
            await office.until(lambda: office.checked)
            small = office.send("y")
            office.send_header(office.header("y"))
            await asyncio.sleep(0.05)
            assert office.receipts == []
            office.gate.set()
            assert await office.verdicts(1) == [(large.update, "accepted")]
            office.send("y")
            assert await office.verdicts(2) == [(large.update, "accepted"), (small.update, "accepted")]

    asyncio.run(way())
