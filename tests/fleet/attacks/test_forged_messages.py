"""Whoever has not proved who it is changes nothing: not what a device has sent, and not who is here."""

import asyncio

from edge.protocol.messages import Hello, Presence, Telemetry, Want
from edge.protocol.signing import Signer


def everything(fleet):
    """What the journal remembers of updates, of refusals and of who is here."""
    with fleet.opened() as (journal, _):
        updates = [(one.device, one.status) for one in journal.updates()]
        return updates, len(journal.refusals()), [one.device for one in journal.devices()]


def test_a_strangers_junk_chunk_spoils_no_update(fleet, stranger):
    async def scenario():
        async with fleet.serving(), stranger(fleet.broker) as s, fleet.device("x").joined() as x:
            header, payload = await x.prepare()
            await x.send_header(header)
            for number in range(len(payload) // header.chunk_bytes + 1):
                for junk in (b"", b"\0" * header.chunk_bytes, b"x" * (header.chunk_bytes + 96)):
                    await s.publish(s.topics.up("x", header.update, number), junk)
            await x.send_chunks(header, payload)
            assert (await x.receipt(header.update)).status == "accepted"
            assert [receipt.status for receipt in x.receipts] == ["accepted"]

    asyncio.run(scenario())
    assert everything(fleet) == ([("x", "accepted")], 0, ["x"])


def test_a_strangers_junk_header_gets_no_verdict(fleet, stranger):
    """Also under closed enrolment, and for an update that its device has under way."""

    async def scenario():
        x = fleet.device("x")
        listed = {"enrolment": "closed", "devices": {"x": x.signer.key}}
        async with fleet.serving(**listed), stranger(fleet.broker) as s, x.joined():
            header, payload = await x.prepare()
            topic = s.topics.up("x", header.update, "header")
            for _ in range(20):
                await s.publish(topic, b"\xff{")
                await s.publish(topic, b'{"body":{}}')
                await s.say(topic, header)
                await s.say(s.topics.up("ghost", header.update, "header"), header)
            await x.upload(header, payload)
            assert [receipt.status for receipt in x.receipts] == ["accepted"]

    asyncio.run(scenario())
    assert everything(fleet) == ([("x", "accepted")], 0, ["x"])


def test_a_header_that_was_overheard_counts_for_nobody_else_and_only_once(fleet, stranger):
    """Sent again, to another device's topic, under another update, and with another's envelope."""

    async def scenario():
        async with (
            fleet.serving(),
            stranger(fleet.broker) as s,
            fleet.device("x").joined() as x,
            fleet.device("y").joined() as y,
        ):
            overhearing = asyncio.create_task(s.keep(s.topics.up("x", "+", "header"), 1))
            header, payload = await x.prepare()
            await x.upload(header, payload)
            await overhearing
            heard = s.heard[0].payload
            for topic in (
                s.topics.up("x", header.update, "header"),
                s.topics.up("y", header.update, "header"),
                s.topics.up("x", "0" * 32, "header"),
                s.topics.device("x", "hello"),
                s.topics.device("y", "hello"),
            ):
                await s.publish(topic, heard)
            assert (await y.teach(seed=1))[0].status == "accepted"
            assert len(x.receipts) == 1

    asyncio.run(scenario())
    assert everything(fleet)[0] == [("y", "accepted"), ("x", "accepted")]


def test_nobody_is_marked_offline_or_online_by_a_stranger(fleet, stranger):
    """Not with the latest of all epochs, and not unsigned as the first wire had it."""

    async def scenario():
        async with fleet.serving(), stranger(fleet.broker, epoch=2**53) as s, fleet.device("x").joined() as x:
            await x.teach(seed=1)
            topic = s.topics.device("x", "state")
            await s.say(topic, Presence(online=False), retain=True)
            await s.publish(topic, b'{"online":false,"epoch":9007199254740992}', retain=True)
            await s.publish(topic, b"")
            await x.teach(seed=2, attempt=1)
            assert "device x is offline" not in fleet.said

    asyncio.run(scenario())


def test_a_presence_that_was_overheard_says_nothing_later(fleet, stranger):
    async def scenario():
        async with fleet.serving(), stranger(fleet.broker) as s:
            overhearing = asyncio.create_task(s.keep(s.topics.device("x", "state"), 2))
            async with fleet.device("x").joined() as x:
                await x.manifest()
            await overhearing
            async with fleet.device("y").joined() as y:
                x.signer = Signer(x.key, 2)
                await y.manifest()
                for message in s.heard:
                    await s.publish(message.topic, message.payload, retain=True)
                await y.teach(seed=1)

    asyncio.run(scenario())
    assert fleet.said.count("device x is online") + fleet.said.count("device x is back") == 0


def test_a_name_that_a_device_has_is_no_other_keys(fleet, stranger):
    async def scenario():
        async with fleet.serving(), stranger(fleet.broker) as s, fleet.device("x").joined() as x:
            await x.teach(seed=1)
            hello = Hello(**{name: getattr(x.hello(), name) for name in Hello.__struct_fields__})
            await s.say(s.topics.device("x", "hello"), hello, retain=True)
            telemetry = Telemetry(base_version=0, step=1, steps=2, loss=1.0, tokens_per_s=1.0, memory_bytes=1)
            await s.say(s.topics.device("x", "telemetry"), telemetry)
            assert (await x.teach(seed=2, attempt=1))[0].status == "accepted"

    asyncio.run(scenario())
    with fleet.opened() as (journal, _):
        (device,) = journal.devices()
        assert device.telemetry is None
    assert any("x has key" in line for line in fleet.said)


def test_a_strangers_wants_are_not_served(fleet, stranger):
    async def scenario():
        async with fleet.serving(), stranger(fleet.broker) as s, fleet.device("x").joined() as x:
            manifest = await x.manifest()
            await s.subscribe(s.topics.blob(manifest.sha256))
            for ranges in (((0, 2**53),), ((0, 1),) * 256):
                want = Want(sha256=manifest.sha256, ranges=ranges, window=16)
                for _ in range(50):
                    await s.say(s.topics.device("x", "want"), want)
                    await s.say(s.topics.device("ghost", "want"), want)
            await x.teach(seed=1)
            num_blobs = x.num_chunks_seen
            assert num_blobs <= 2 * len(x.chunks[manifest.sha256])

    asyncio.run(scenario())


def test_what_was_signed_for_another_fleet_proves_nothing(fleet, stranger):
    """What is signed for fleet `other` is nothing in `home`, by the very same key."""

    async def scenario():
        async with fleet.serving(), stranger(fleet.broker) as s, fleet.device("x").joined() as x:
            await x.manifest()
            elsewhere = s.topics.device("x", "hello").replace("/home/", "/other/")
            moved = Signer(x.key, 9).seal(elsewhere, x.hello())
            await s.publish(s.topics.device("x", "hello"), moved, retain=True)
            assert (await x.teach(seed=1))[0].status == "accepted"

    asyncio.run(scenario())
    assert any("bad signature" in line for line in fleet.said)
