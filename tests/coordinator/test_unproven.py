"""What strangers send changes nothing: each message that once did harm, at a coordinator in memory.

The stranger hears everything, may publish everything, and has a key of its own.
"""

import asyncio
from contextlib import asynccontextmanager

import pytest

from edge.protocol.messages import Presence
from edge.protocol.signing import Signer, new_key
from edge.transport.memory import MemoryTransport


class Stranger:
    """Somebody at the broker, and all that was ever said there."""

    def __init__(self, transport):
        self.transport = transport
        self.heard = []
        self.signer = Signer(new_key(), 2**50)

    async def listen(self, topics):
        for topic_filter in (
            f"{topics.device('+', '+')}",
            topics.up("+", "+", "header"),
            topics.version("+"),
        ):
            await self.transport.subscribe(topic_filter)
        async for message in self.transport.messages():
            self.heard.append(message)

    async def say(self, topic, payload, **how):
        await self.transport.publish(topic, payload, **how)


@asynccontextmanager
async def stranger(fleet, topics):
    async with MemoryTransport(fleet.broker, "stranger") as transport:
        one = Stranger(transport)
        listening = asyncio.create_task(one.listen(topics))
        await asyncio.sleep(0.05)
        try:
            yield one
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


def journalled(fleet):
    with fleet.opened() as (journal, _):
        return [(one.id, one.status, one.reason) for one in journal.updates()], journal.refusals()


def roster_of(fleet):
    with fleet.opened() as (journal, _):
        return [
            (one.device, one.key, one.online, one.hello, one.telemetry, one.held, one.stamps)
            for one in journal.devices()
        ]


def test_junk_in_the_place_of_a_chunk_spoils_no_update(fleet):
    async def way():
        async with fleet.serving(), fleet.device("x").joined() as x, stranger(fleet, x.topics) as enemy:
            header, payload = await x.prepare()
            await x.send_header(header)
            total = -(-len(payload) // header.chunk_bytes)
            for number in range(total):
                topic = x.topics.up("x", header.update, number)
                for junk in (bytes(header.chunk_bytes), bytes(header.chunk_bytes + 64), b"", b"x" * 70_000):
                    await enemy.say(topic, junk)
            await x.send_chunks(header, payload)
            assert (await x.receipt(header.update)).status == "accepted"
            assert len(x.receipts) == 1

    asyncio.run(way())


@pytest.mark.parametrize("settings", [{}, {"enrolment": "closed"}], ids=["open", "closed"])
@pytest.mark.parametrize("moment", ["known to nobody", "evicted", "under way", "accepted"])
def test_a_junk_header_for_anothers_update_is_answered_by_nothing(fleet, settings, moment):
    async def way():
        x = fleet.device("x")
        listed = settings | {"devices": {"x": x.signer.key}}
        async with fleet.serving(**listed), x.joined(), stranger(fleet, x.topics) as enemy:
            header, payload = await x.prepare()
            if moment in ("under way", "evicted"):
                await x.send_header(header)
                await x.send_chunks(header, payload, range(1))
            if moment == "evicted":
                for attempt in range(1, 9):
                    await x.send_header(x.header(await x.manifest(), payload, attempt=attempt))
            if moment == "accepted":
                assert (await x.upload(header, payload)).status == "accepted"
            before = len(x.receipts)
            topic = x.topics.up("x", header.update, "header")
            signed = x.signer.seal(topic, header)  # never sent
            for junk in (
                b"", b"{}", b"[" * 9000, enemy.signer.seal(topic, header), signed.replace(b'"r4"', b'"r2"'),
                x.signer.seal(topic.replace("/x/", "/y/"), header),
            ):  # fmt: skip
                await enemy.say(topic, junk)
            await asyncio.sleep(0.2)
            assert x.receipts[before:] == []
            assert (await x.upload(header, payload)).status in ("accepted", "missing", "busy")
            await x.until(lambda: [one for one in x.receipts if one.status == "accepted"])
        assert journalled(fleet) == ([(header.update, "accepted", None)], [])

    asyncio.run(way())


def test_whatever_was_said_says_nothing_again_nor_anywhere_else(fleet):
    """Replays on their own topics, other devices', other kinds' and another fleet's."""

    async def way():
        y = fleet.device("y")
        async with fleet.serving(), fleet.device("x").joined() as x, stranger(fleet, x.topics) as enemy:
            async with y.joined():
                await y.teach(seed=1)
            await x.teach(seed=2)
            await x.say("hello", x.hello(), retain=True)
            await x.say("state", Presence(online=True), retain=True)
            await asyncio.sleep(0.3)
            said = list(enemy.heard)
            kinds = {message.topic.split("/")[5] for message in said if "/device/" in message.topic}
            assert kinds >= {"hello", "state", "want", "receipt", "up"}
        async with fleet.serving(), x.joined():  # a coordinator that has only its journal to remember by
            await asyncio.sleep(0.3)
            x.receipts.clear()
            async with stranger(fleet, x.topics) as again:
                before = journalled(fleet)
                for message in said:
                    if message.topic.endswith(
                        "/receipt"
                    ):  # devices' own: tests/fleet/clients/test_unproven.py
                        continue
                    kind = message.topic.split("/")[5:6]
                    places = {message.topic, message.topic.replace("/x/", "/z/").replace("/y/", "/x/")}
                    if kind in (["hello"], ["state"]):
                        places |= {
                            message.topic.replace(f"/{kind[0]}", f"/{other}") for other in ("want", "hello")
                        }
                    for topic in places:
                        await again.say(topic, message.payload)
                await asyncio.sleep(0.5)
            assert journalled(fleet) == before
            devices = {name: (key, online) for name, key, online, *_ in roster_of(fleet)}
            assert devices == {"x": (x.signer.key, True), "y": (y.signer.key, False)}

    asyncio.run(way())


def test_a_presence_of_the_far_future_marks_nobody_offline(fleet):
    async def way():
        async with fleet.serving(), fleet.device("x").joined() as x, stranger(fleet, x.topics) as enemy:
            await x.teach(seed=1)
            topic = x.topics.device("x", "state")
            far = Signer(new_key(), 2**53)
            for payload in (
                b'{"online":false,"epoch":9007199254740992}',
                far.seal(topic, Presence(online=False)),
            ):
                await enemy.say(topic, payload, retain=True)
            await x.say("state", Presence(online=True), retain=True)
            await x.teach(seed=2, attempt=1)
        assert [(name, online) for name, _, online, *_ in roster_of(fleet)] == [("x", True)]

    asyncio.run(way())


def test_an_attempt_that_counts_counts_for_no_other_bytes(fleet):
    async def way():
        async with fleet.serving(), fleet.device("x").joined() as x:
            assert (await x.teach(seed=1))[0].status == "accepted"
            second = (await x.teach(seed=2))[0]
            assert (second.status, second.reason) == ("rejected", "attempt-taken")

    asyncio.run(way())


def test_of_two_headers_for_one_update_the_later_one_is_received(fleet):
    """A verdict is about the bytes that were signed: the first header's would be of no use to its device."""

    async def way():
        async with fleet.serving(), fleet.device("x").joined() as x:
            header, payload = await x.prepare()
            await x.send_header(header)
            await x.send_chunks(header, payload, range(1))
            other = x.header(await x.manifest(), payload, num_examples=11)
            assert other.update == header.update
            receipt = await x.upload(other, payload)
            topic = x.topics.up("x", other.update, "header")
            assert receipt.status == "accepted"
            assert receipt.header == digest_of(x, topic, other)

    asyncio.run(way())


def digest_of(device, topic, header):
    from edge.protocol.signing import Keyring, read_signed

    return Keyring().open(topic, read_signed(device.signer.seal(topic, header)), type(header)).digest
