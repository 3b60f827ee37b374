"""Whoever has proved who it is, and wants too much: bounded for each key, while everybody else goes on."""

import asyncio

from msgspec import structs

from edge.protocol.messages import encode_message
from edge.protocol.signing import Signer, new_key
from edge.transport.memory import MemoryTransport


def test_hellos_of_two_megabytes_leave_nothing_behind(fleet, stranger):
    async def scenario():
        async with fleet.serving(), stranger(fleet.broker) as s, fleet.device("x").joined() as x:
            await x.manifest()
            for number in range(30):
                topic = s.topics.device(f"big-{number}", "hello")
                hello = structs.replace(x.hello(), device_id=f"big-{number}")
                for changed in (
                    structs.replace(hello, backend="b" * 1_900_000),
                    structs.replace(hello, ranks=tuple(range(200_000))),
                    structs.replace(hello, encodings=("f32",) * 100_000),
                ):
                    await s.publish(topic, s.signer.seal(topic, changed), retain=True)
            assert (await x.teach(seed=1))[0].status == "accepted"

    asyncio.run(scenario())
    with fleet.opened() as (journal, _):
        assert [one.device for one in journal.devices()] == ["x"]
    assert sum(path.stat().st_size for path in fleet.folder.rglob("*") if path.is_file()) < 2 << 20
    assert max(map(len, fleet.said)) < 1000


def test_ids_of_sixty_kilobytes_are_nobodys(fleet, stranger):
    async def scenario():
        async with fleet.serving(), stranger(fleet.broker) as s, fleet.device("x").joined() as x:
            for kind in ("hello", "state", "want", "telemetry"):
                topic = s.topics.device("i" * 60_000, kind)
                await s.publish(topic, s.signer.seal(topic, x.hello()))
            assert (await x.teach(seed=1))[0].status == "accepted"

    asyncio.run(scenario())
    assert max(map(len, fleet.said)) < 1000


def test_a_thousand_ids_of_one_key_take_no_room_from_others(fleet, stranger):
    async def scenario():
        async with fleet.serving(), stranger(fleet.broker) as s, fleet.device("x").joined() as x:
            for number in range(1000):
                topic = s.topics.device(f"many-{number}", "hello")
                hello = structs.replace(x.hello(), device_id=f"many-{number}")
                await s.publish(topic, s.signer.seal(topic, hello))
            assert (await x.teach(seed=1))[0].status == "accepted"

    asyncio.run(scenario())
    with fleet.opened() as (journal, _):
        names = [one.device for one in journal.devices()]
    assert "x" in names
    assert len(names) <= 10


def test_forty_updates_for_one_attempt_count_once(fleet):
    async def scenario():
        settings = {"recipe": {"attempts": 1}, "buffer_size": 50}
        async with fleet.serving(**settings), fleet.device("x").joined() as x:
            verdicts = []
            for seed in range(8):
                receipt, _ = await x.teach(seed=seed, attempt=seed % 2)
                verdicts.append((receipt.status, receipt.reason))
            return verdicts

    verdicts = asyncio.run(scenario())
    assert [status for status, _ in verdicts].count("accepted") == 1
    assert {reason for _, reason in verdicts[1:]} <= {"attempt-taken", "too-many-attempts"}


def test_what_strangers_send_makes_few_lines(fleet, stranger):
    """A thousand kinds of junk, each in other words, and each from another topic."""

    async def scenario():
        async with fleet.serving(), stranger(fleet.broker) as s, fleet.device("x").joined() as x:
            await x.manifest()
            before = len(fleet.said)
            for number in range(1000):
                await s.publish(s.topics.device(f"d{number}", "hello"), b'{"body":"%d"}' % number)
            await x.teach(seed=1)
            return len(fleet.said) - before

    assert asyncio.run(scenario()) < 60


def test_abandoned_uploads_of_forty_ids_throw_no_slow_one_out(fleet, stranger):
    async def scenario():
        async with fleet.serving(max_open_uploads=8), fleet.device("x").joined() as x:
            header, payload = await x.prepare()
            await x.send_header(header)
            await x.send_chunks(header, payload, range(1))
            for number in range(40):
                async with fleet.device(f"d{number}").joined() as d:
                    other, _ = await d.prepare()
                    await d.send_header(other)
                if number % 4 == 0:  # however slowly, it moves
                    await x.send_chunks(header, payload, range(1 + number // 4, 2 + number // 4))
            await x.send_chunks(header, payload)
            assert (await x.receipt(header.update)).status == "accepted"

    asyncio.run(scenario())


def test_a_signature_costs_a_stranger_its_own_time_and_leaves_no_trace(fleet, stranger):
    """Properly signed by keys nobody knows, under closed enrolment: nothing is answered or written down."""

    async def scenario():
        x = fleet.device("x")
        listed = {"enrolment": "closed", "devices": {"x": x.signer.key}}
        async with fleet.serving(**listed), MemoryTransport(fleet.broker, "ears") as ears, x.joined():
            await ears.subscribe(x.topics.device("+", "receipt"))
            for number in range(100):
                signer = Signer(new_key(), 1)
                topic = x.topics.device(f"s{number}", "hello")
                hello = structs.replace(x.hello(), device_id=f"s{number}")
                await ears.publish(topic, signer.seal(topic, hello), retain=True)
                topic = x.topics.up(f"s{number}", "0" * 32, "header")
                await ears.publish(topic, signer.seal_body(topic, encode_message(hello)))
            assert (await x.teach(seed=1))[0].status == "accepted"
            heard = []
            async with asyncio.timeout(1):
                async for message in ears.messages():
                    heard.append(message.topic)
                    if message.topic.endswith("x/receipt"):
                        break
            return heard

    heard = asyncio.run(scenario())
    assert {topic.split("/")[4] for topic in heard} == {"x"}
    with fleet.opened() as (journal, _):
        assert [one.device for one in journal.devices()] == ["x"]
        assert journal.refusals() == []
