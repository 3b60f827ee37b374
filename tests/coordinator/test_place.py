"""One fleet has one coordinator: who asks is told, who is thrown out ends, and the dead hold nobody up."""

import asyncio
import secrets
import time
from contextlib import asynccontextmanager, suppress

import pytest

from coordinator.announcing import coordinator_presence
from coordinator.ledger.state import CoordinatorState
from coordinator.observers.terminal import Terminal
from coordinator.place import Place
from coordinator.server import Coordinator
from edge.errors import PlaceTaken, ProtocolError
from edge.protocol.messages import Answer, Challenge, Manifest, Presence, decode_message, encode_message
from edge.protocol.signing import Keyring, Signer, new_key, public_key, read_signed
from edge.protocol.topics import Topics
from edge.transport.memory import MemoryTransport
from edge.transport.mqtt.transport import MqttTransport
from edge.transport.settings import MqttSettings

TOPICS = Topics("home")


def sealed(topic, record, key, epoch=5):
    return Signer(key, epoch).seal(topic, record)


def online(key):
    return sealed(TOPICS.coordinator, Presence(online=True), key)


class Seat:
    """A coordinator with a state folder of its own, and its place in fleet `home`."""

    def __init__(self, fleet, folder, connect, **waits):
        self.fleet, self.folder, self.connect, self.waits = fleet, folder, connect, waits
        self.place = self.coordinator = None

    @asynccontextmanager
    async def taken(self, transport, epoch, claim=False, answers=True):
        with CoordinatorState(self.folder, "home") as state:
            self.signer = signer = Signer(state.key, epoch)
            self.place = Place("home", signer.key, self.connect, lambda: 1_760_000_000.0, **self.waits)
            self.place.take(signer)
            self.coordinator = Coordinator(
                self.fleet.config(state=str(self.folder), max_versions=0),
                state,
                transport(coordinator_presence("home", signer), self.place.claim if claim else None),
                place=self.place if answers else None,
                signer=signer,
                observers=[Terminal(lambda event: self.fleet.said.append(event.text))],
            )
            running = asyncio.create_task(self.coordinator.run())
            try:
                await until(lambda: any("coordinator key" in text for text in self.fleet.said))
                await asyncio.sleep(0.1)  # it has heard its own birth
                self.fleet.said.clear()
                yield running
            finally:
                self.coordinator.stop()
                await asyncio.gather(running, return_exceptions=True)


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def aside(fleet):
    """Makes transports under client ids of their own."""
    return lambda: MemoryTransport(fleet.broker, f"aside-{secrets.token_hex(4)}")


@pytest.fixture
def seat(fleet, tmp_path, aside):
    return lambda name="a": Seat(fleet, tmp_path / name, aside)


def unproven(payload):
    with suppress(ProtocolError):
        return read_signed(payload)


def in_memory(fleet, client_id="coordinator"):
    return lambda presence, claim: MemoryTransport(fleet.broker, client_id, presence)


def test_who_lives_says_who_it_is(fleet, seat, aside):
    async def way():
        one = seat()
        async with one.taken(in_memory(fleet), epoch=7):
            stranger = Place("home", public_key(new_key()), aside)
            found = await stranger.look()
            assert (found.holder.epoch, found.holder.version) == (7, 0)
            assert found.holder_key == one.signer.key
            with pytest.raises(PlaceTaken) as told:
                raise stranger.taken(found)
            copy = Place("home", one.signer.key, aside)
            told_copy = str(copy.taken(await copy.look()))
            assert (await one.place.look()).holder is None  # itself is no other
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1_760_000_000))
        for part in (
            "fleet home is served already by the coordinator",
            f"key {one.signer.key[:16]}…",
            f"at version 0 and there since {since}",
            "stop that one first",
        ):
            assert part in str(told.value)
        assert str(fleet.folder.parent) not in str(told.value)
        assert "from a copy of this state folder" in told_copy
        assert "copy" not in str(told.value)

    asyncio.run(way())


def test_a_place_that_nobody_has_is_free_at_once(aside):
    async def way():
        begun = time.monotonic()
        await Place("home", public_key(new_key()), aside).claim()
        assert time.monotonic() - begun < 5

    asyncio.run(way())


def test_the_retained_presence_of_a_dead_coordinator_holds_nobody_up_for_long(aside):
    async def way():
        async with aside() as dead:
            await dead.publish(TOPICS.coordinator, online(new_key()), retain=True)
            await Place("home", public_key(new_key()), aside, answer_within_s=1.5, ask_every_s=0.3).claim()

    asyncio.run(way())


def test_a_busy_coordinator_is_waited_for(aside):
    key = new_key()

    async def way():
        async with aside() as busy:
            await busy.publish(TOPICS.coordinator, online(key), retain=True)
            await busy.subscribe(TOPICS.challenge)

            async def answer_late():
                async for message in busy.messages():
                    await asyncio.sleep(1.2)
                    nonce = decode_message(message.payload, Challenge).nonce
                    await busy.publish(TOPICS.answer, sealed(TOPICS.answer, answer(nonce=nonce), key))

            answering = asyncio.create_task(answer_late())
            found = await Place("home", public_key(new_key()), aside, ask_every_s=0.3).look()
            answering.cancel()
        assert found.holder_key == public_key(key)

    asyncio.run(way())


def answer(**changes):
    fields = {"fleet": "home", "nonce": "0" * 32, "session": "1" * 32, "epoch": 5, "version": 3}
    return Answer(**fields | {"since": 1.0, "host": "pi"} | changes)


def test_what_is_no_answer_to_this_challenge_counts_for_nothing(aside):
    async def way():
        async with aside() as liar:
            await liar.subscribe(TOPICS.challenge)

            async def lie():
                async for message in liar.messages():
                    nonce, key = decode_message(message.payload, Challenge).nonce, new_key()
                    good = sealed(TOPICS.answer, answer(nonce=nonce), key)
                    forged = good.replace(b'"version":3', b'"version":4')
                    for payload in (
                        sealed(TOPICS.answer, answer(), key),  # to another challenge
                        sealed(TOPICS.answer, answer(nonce=nonce, fleet="other"), key),
                        sealed(TOPICS.challenge, answer(nonce=nonce), key),
                        encode_message(answer(nonce=nonce)),
                        forged,
                        good.replace(b'"pi"', b'"\\u001b[2J"'),
                        b"",
                        b"[" * 10_000,
                    ):
                        await liar.publish(TOPICS.answer, payload)
                        await liar.publish(TOPICS.coordinator, payload, retain=True)
                        await liar.publish(TOPICS.version("r4"), payload, retain=True)

            lying = asyncio.create_task(lie())
            place = Place("home", public_key(new_key()), aside)
            assert [(await place.look()).holder for _ in range(2)] == [None, None]
            lying.cancel()

    asyncio.run(way())


def test_what_is_no_challenge_is_told_and_the_coordinator_goes_on(fleet, seat, aside):
    async def way():
        async with seat().taken(in_memory(fleet), epoch=7), aside() as liar:
            for payload in (b"", b"{}", b'{"nonce":"x"}', b"\xff" * 100):
                await liar.publish(TOPICS.challenge, payload)
            assert (await Place("home", public_key(new_key()), aside).look()).holder is not None
        assert any("coordinator/challenge" in text for text in fleet.said)

    asyncio.run(way())


def test_the_sessions_of_ones_own_key_and_other_keys_are_heard(fleet, seat, aside):
    async def way():
        one = seat()
        async with one.taken(in_memory(fleet), epoch=7):
            pass
        found = await Place("home", one.signer.key, aside).look()
        assert (found.epoch, found.version, found.strangers, found.holder) == (7, 0, frozenset(), None)
        found = await Place("home", public_key(new_key()), aside).look()
        assert (found.epoch, found.version) == (0, -1)
        assert found.strangers == {one.signer.key}

    asyncio.run(way())


@pytest.mark.parametrize("whose", ["another", "late will", "nobody"])
def test_a_presence_that_is_not_its_own_is_put_right(fleet, seat, aside, whose):
    """A late will, or a stranger's joke: who looks must see that somebody is there."""

    async def way():
        one = seat()
        async with one.taken(in_memory(fleet), epoch=7), aside() as ear:
            payload = {
                "another": online(new_key()),
                "late will": one.signer.seal(TOPICS.coordinator, Presence(online=False)),
                "nobody": b'{"online":false}',
            }[whose]
            await ear.publish(TOPICS.coordinator, payload, retain=True)
            await ear.subscribe(TOPICS.coordinator)
            async with asyncio.timeout(10):
                async for message in ear.messages():
                    signed = unproven(message.payload)
                    if signed and (signed.key, bytes(signed.body)) == (one.signer.key, b'{"online":true}'):
                        break

    asyncio.run(way())


def test_of_two_that_do_not_throw_each_other_out_the_earlier_yields(fleet, seat):
    """As with bridged brokers: neither has the other's client id."""

    async def way():
        first, second = seat("a"), seat("b")
        async with (
            first.taken(in_memory(fleet, "one"), epoch=7) as earlier,
            second.taken(in_memory(fleet, "two"), epoch=8) as later,
        ):
            with pytest.raises(PlaceTaken, match=r"this coordinator lost its place to the coordinator"):
                async with asyncio.timeout(20):
                    await earlier
            assert not later.done()

    asyncio.run(way())


@pytest.mark.broker
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("answers", [True, False], ids=["by another", "by a copy that is silent"])
def test_who_is_thrown_out_at_the_broker_says_by_whom_and_is_silent_from_then_on(
    fleet, tmp_path, mosquitto, protocol, answers
):
    url = f"mqtt://127.0.0.1:{mosquitto}"

    def settings(client_id, **changes):
        return MqttSettings.from_url(url, client_id, protocol=protocol, **changes)

    def connect():
        return MqttTransport(settings(f"home-coordinator-{secrets.token_hex(4)}"))

    def own(presence, claim):
        return MqttTransport(settings("home-coordinator"), presence, claim=claim)

    async def way():
        first, second = (Seat(fleet, tmp_path / name, connect, answer_within_s=2.0) for name in "ab")
        if not answers:  # it is a copy: with another key nobody could tell it from a stranger's joke
            for folder in (first.folder, second.folder):
                folder.mkdir()
                (folder / "identity.key").write_text("42" * 32)
        async with (
            MqttTransport(settings("ear")) as ear,
            first.taken(own, epoch=7, claim=True) as earlier,
            second.taken(own, epoch=8, answers=answers) as later,  # it has not asked
        ):
            with pytest.raises(PlaceTaken) as told:
                async with asyncio.timeout(20):
                    await earlier
            assert not later.done()
            who = second.signer.key[:16] if answers else "another client with the id home-coordinator"
            assert "this coordinator lost its place to " in str(told.value)
            assert who in str(told.value)
            await ear.subscribe(f"{TOPICS.root}/#")
            heard = {}
            async with asyncio.timeout(10):
                async for message in ear.messages():
                    heard[message.topic] = message.payload
                    if {TOPICS.coordinator, TOPICS.version("r2")} <= heard.keys():
                        break
            for topic, kind in ((TOPICS.coordinator, Presence), (TOPICS.version("r2"), Manifest)):
                opened = Keyring().open(topic, read_signed(heard[topic]), kind)
                assert (opened.key, opened.stamp.epoch) == (second.signer.key, 8)
                assert kind is Manifest or opened.record.online

    asyncio.run(way())
