"""A coordinator over kills, strangers and devices that come and go."""

import asyncio

import pytest

from edge.protocol.messages import Presence, Want
from edge.protocol.signing import Signer
from edge.transport.memory import MemoryBroker


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_restart_goes_on_where_it_stopped(fleet, is_killed):
    async def scenario():
        async with fleet.device("x").joined() as x, fleet.device("y").joined() as y:
            half = None
            try:
                async with fleet.serving(limits={"small_bytes": 0}):
                    await x.teach(seed=1)
                    half = await y.prepare()
                    await y.send_header(half[0])
                    await y.send_chunks(half[0], half[1], range(2))
                    await y.send_header(half[0])
                    await y.receipt(half[0].update)
                    if is_killed:
                        raise InterruptedError
            except InterruptedError:
                fleet.broker.kill("coordinator")
            header, payload = half
            async with fleet.serving(limits={"small_bytes": 0}):
                await y.send_header(header)
                receipt = await y.receipt(header.update, count=2)
                assert receipt.missing == ((2, -(-len(payload) // header.chunk_bytes)),)
                await y.send_chunks(header, payload, range(2, 100))
                assert (await y.receipt(header.update, count=3)).status == "accepted"
                await x.manifest(version=1)
        with fleet.opened() as (journal, _):
            assert [update.merged_into for update in journal.updates()] == [1, 1]

    asyncio.run(scenario())


def test_hostile_messages_stop_nothing(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            root = x.topics.root
            junk = [b"", b"\xff\xfe", b"{}", b"[" * 10_000, b'{"body":1}', b"null"]
            for topic in ("hello", "state", "want", "telemetry", "up/no-id/header", f"up/{'a' * 32}/header",
                          f"up/{'a' * 32}/0", f"up/{'a' * 32}/-1",
                          f"up/{'a' * 32}/x", f"up/{'a' * 32}/{'9' * 5000}", "up/../header"):  # fmt: skip
                for payload in junk:
                    await x.transport.publish(f"{root}/device/x/{topic}", payload)
                    await x.transport.publish(f"{root}/device/NOT AN ID/{topic}", payload)
            huge = Want(sha256="0" * 64, ranges=((0, 2**53),), window=16)
            manifest = await x.manifest()
            for want in (huge, Want(sha256=manifest.sha256, ranges=((0, 2**53),) * 100, window=16)):
                await x.say("want", want)
            assert (await x.teach(seed=1))[0].status == "accepted"
        told = [line for line in fleet.said if line.startswith("device/")]
        assert any("/hello: " in line for line in told)
        assert len(told) <= 12  # of more than a hundred: each kind once

    asyncio.run(scenario())


def test_a_late_will_of_an_old_session_is_ignored(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            topic = x.topics.device("x", "state")
            await x.manifest()
            old, new = Signer(x.key, 4), Signer(x.key, 5)
            for online, signer in ((True, new), (False, old)):
                await x.transport.publish(topic, signer.seal(topic, Presence(online=online)))
            x.signer = new
            await x.teach(seed=1)
        with fleet.opened() as (journal, _):
            (device,) = journal.devices()
            assert (device.online, device.stamps["state"]) == (True, (5, 1))

    asyncio.run(scenario())


def test_nobody_is_online_before_this_session_has_heard_so(fleet):
    """The broker may be another than before, and empty."""

    async def scenario():
        async with fleet.device("x").joined():
            for _ in range(2):
                async with fleet.serving():
                    await asyncio.sleep(0.5)
                    assert online_of(fleet)  # as the broker has it
            fleet.broker = MemoryBroker()
            async with fleet.serving():
                await asyncio.sleep(0.5)
                assert not online_of(fleet)

    asyncio.run(scenario())


def online_of(fleet):
    with fleet.opened() as (journal, _):
        return [device.online for device in journal.devices()] == [True]


def test_an_error_that_nobody_foresaw_ends_nothing_and_is_said_once(fleet, caplog):
    class Broken:
        """An observer with a mistake in it."""

        def __call__(self, event):
            if event.kind == "joined":
                raise ZeroDivisionError("of no use \x1b[2J")

    async def scenario():
        async with fleet.serving(observers=(Broken(),)):
            async with fleet.device("x").joined() as x:
                await x.manifest()
            async with fleet.device("y").joined() as y:
                assert (await y.teach(seed=1))[0].status == "accepted"

    with caplog.at_level("DEBUG", logger="edge.complaints"):
        asyncio.run(scenario())
    (line,) = [line for line in fleet.said if "mistake in tunefleet" in line]
    assert "ZeroDivisionError: of no use \\x1b[2J; this is" in line
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info[0] is ZeroDivisionError
