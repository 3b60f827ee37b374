"""One fleet has one coordinator of one key: who asks is told, who was replaced ends, the dead hold nobody up.

And whatever other keys say of themselves is told, and ends nobody.
"""

import asyncio
import secrets
import time
from contextlib import asynccontextmanager, suppress

import pytest

from coordinator.announcing import coordinator_presence
from coordinator.ledger.state import CoordinatorState
from coordinator.observers.terminal import Terminal
from coordinator.place import Sessions, coordinator_place
from coordinator.server import Coordinator
from edge.delivery.inquiry import Waits
from edge.errors import PlaceTaken, ProtocolError
from edge.protocol.messages import Answer, Challenge, Manifest, Presence, decode_message, encode_message
from edge.protocol.signing import Keyring, Signer, new_key, public_key, read_signed
from edge.protocol.topics import Topics
from edge.transport.memory import MemoryTransport
from edge.transport.mqtt.transport import MqttTransport
from edge.transport.settings import MqttSettings

TOPICS = Topics("home")
KEY = "42" * 32  # of the coordinators in this file, which are copies of each other
QUICK = Waits(quick_s=0.3, answer_within_s=2.0, ask_every_s=0.3, doubt_every_s=0.2, answer_every_s=0.05)


def sealed(topic, record, key, epoch=5):
    return Signer(key, epoch).seal(topic, record)


def online(key):
    return sealed(TOPICS.coordinator, Presence(online=True), key)


def place_of(key, connect, warned=None, waits=QUICK):
    warn = [].append if warned is None else warned.append
    return coordinator_place("home", Signer(key, 0), connect, warn, lambda: 1_760_000_000.0, waits)


class Seat:
    """A coordinator with a state folder of its own, and its place in fleet `home`."""

    def __init__(self, fleet, folder, connect, key=KEY):
        self.fleet, self.folder, self.connect = fleet, folder, connect
        folder.mkdir()
        (folder / "identity.key").write_text(key)
        self.warned = []
        self.place = self.coordinator = None

    @asynccontextmanager
    async def taken(self, transport, epoch, claim=False, answers=True):
        with CoordinatorState(self.folder, "home") as state:
            self.signer = signer = Signer(state.key, epoch)
            self.place = place_of(state.key, self.connect, self.warned)
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


def test_a_copy_is_told_who_lives_and_who_lives_is_told_of_the_copy(fleet, seat, aside):
    async def way():
        one = seat()
        async with one.taken(in_memory(fleet), epoch=7) as running:
            with pytest.raises(PlaceTaken) as told:
                await place_of(bytes.fromhex(KEY), aside).look()
            assert (await one.place.look()).holder is None  # itself is no other
            await asyncio.sleep(0.3)
            assert not running.done()
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1_760_000_000))
        for part in (
            "fleet home is served already by the coordinator on ",
            f"there since {since}",
            f"key {one.signer.key[:16]}…",
            "at version 0, from a copy of this state folder; stop that one first",
        ):
            assert part in str(told.value)
        assert str(fleet.folder.parent) not in str(told.value)
        assert any(
            "a copy of this state folder" in text and "asked for this place" in text for text in one.warned
        )

    asyncio.run(way())


def test_another_key_is_answered_and_told_and_neither_ends(fleet, seat, aside):
    async def way():
        one, told = seat(), []
        async with one.taken(in_memory(fleet), epoch=7) as running:
            stranger = place_of(new_key(), aside, told)
            found = await stranger.look()
            assert (found.holder, found.stranger_key) == (None, one.signer.key)
            assert (found.stranger.epoch, found.stranger.version) == (7, 0)
            await asyncio.sleep(5.1)  # what `look` found is not fresh any more
            await stranger.claim()
            assert not running.done()
        assert any(f"with key {one.signer.key[:16]}…" in text for text in told)

    asyncio.run(way())


def test_a_place_that_nobody_has_is_free_at_once(aside):
    async def way():
        begun = time.monotonic()
        await place_of(new_key(), aside).claim()
        assert time.monotonic() - begun < 5

    asyncio.run(way())


def test_the_retained_presence_of_a_dead_coordinator_holds_nobody_up_for_long(aside):
    async def way():
        async with aside() as dead:
            await dead.publish(TOPICS.coordinator, online(bytes.fromhex(KEY)), retain=True)
            await place_of(bytes.fromhex(KEY), aside).claim()

    asyncio.run(way())


def test_a_busy_copy_is_waited_for(aside):
    key = bytes.fromhex(KEY)

    async def way():
        async with aside() as busy:
            await busy.publish(TOPICS.coordinator, online(key), retain=True)
            await busy.subscribe(TOPICS.challenge)

            async def answer_late():
                async for message in busy.messages():
                    await asyncio.sleep(1.0)
                    reply = answer(nonces=(nonce_of(message),))
                    await busy.publish(TOPICS.answer, sealed(TOPICS.answer, reply, key))

            answering = asyncio.create_task(answer_late())
            with pytest.raises(PlaceTaken):
                await place_of(key, aside).look()
            answering.cancel()

    asyncio.run(way())


def nonce_of(message):
    return decode_message(bytes(read_signed(message.payload).body), Challenge).nonce


def answer(**changes):
    fields = {"fleet": "home", "nonces": ("0" * 32,), "session": "1" * 32, "epoch": 5, "version": 3}
    return Answer(**fields | {"since": 1.0, "host": "pi"} | changes)


def test_what_is_no_answer_to_this_challenge_counts_for_nothing(aside):
    key = bytes.fromhex(KEY)

    async def way():
        async with aside() as liar:
            await liar.subscribe(TOPICS.challenge)

            async def lie():
                async for message in liar.messages():
                    nonces = (nonce_of(message),)
                    good = sealed(TOPICS.answer, answer(nonces=nonces), key)
                    for payload in (
                        sealed(TOPICS.answer, answer(), key),  # to another challenge
                        sealed(TOPICS.answer, answer(nonces=nonces, fleet="other"), key),
                        sealed(TOPICS.challenge, answer(nonces=nonces), key),
                        sealed(Topics("den").answer, answer(nonces=nonces), key),
                        sealed(TOPICS.answer, answer(nonces=nonces), new_key()),  # for another than this
                        encode_message(answer(nonces=nonces)),
                        good.replace(b'"version":3', b'"version":4'),
                        good.replace(b'"pi"', b'"\\u001b[2J"'),
                        b"",
                        b"[" * 10_000,
                    ):
                        await liar.publish(TOPICS.answer, payload)
                        await liar.publish(TOPICS.coordinator, payload, retain=True)
                        await liar.publish(TOPICS.version("r4"), payload, retain=True)

            lying = asyncio.create_task(lie())
            place = place_of(key, aside)
            assert [(await place.look()).holder for _ in range(2)] == [None, None]
            lying.cancel()

    asyncio.run(way())


def test_what_is_no_challenge_is_told_and_the_coordinator_goes_on(fleet, seat, aside):
    async def way():
        async with seat().taken(in_memory(fleet), epoch=7), aside() as liar:
            for payload in (b"", b"{}", b'{"nonce":"x"}', b"\xff" * 100):
                await liar.publish(TOPICS.challenge, payload)
            assert (await place_of(new_key(), aside).look()).stranger is not None
        assert any("coordinator/challenge" in text for text in fleet.said)

    asyncio.run(way())


def test_a_flood_of_challenges_costs_one_signature_each_so_many_ms(fleet, seat, aside):
    async def way():
        async with seat().taken(in_memory(fleet), epoch=7), aside() as ear, aside() as flood:
            await ear.subscribe(TOPICS.answer)
            asked = [secrets.token_hex(16) for _ in range(200)]
            for nonce in asked:
                challenge = Challenge(nonce=nonce, session="1" * 32, host="")
                await flood.publish(TOPICS.challenge, sealed(TOPICS.challenge, challenge, new_key()))
            answers, answered = 0, set()
            async with asyncio.timeout(10):
                async for message in ear.messages():
                    opened = Keyring().open(TOPICS.answer, read_signed(message.payload), Answer)
                    answers, answered = answers + 1, answered | set(opened.record.nonces)
                    if answered == set(asked):
                        break
            assert answers < 50

    asyncio.run(way())


def test_the_sessions_of_ones_own_key_and_other_keys_are_heard(fleet, seat, aside):
    async def way():
        one = seat()
        async with one.taken(in_memory(fleet), epoch=7):
            pass
        own = Sessions("home", one.signer.key)
        found = await place_of(bytes.fromhex(KEY), aside).look(own.filters, own.hear)
        assert (own.epoch, own.version, own.strangers, found.holder) == (7, 0, set(), None)
        key = new_key()
        other = Sessions("home", public_key(key))
        await place_of(key, aside).look(other.filters, other.hear)
        assert (other.epoch, other.version, other.strangers) == (0, -1, {one.signer.key})

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


def test_of_two_copies_that_do_not_throw_each_other_out_the_earlier_yields(fleet, seat):
    """As with bridged brokers: neither has the other's connection."""

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


def test_two_keys_on_one_fleet_are_told_and_neither_yields(fleet, tmp_path, aside):
    async def way():
        first = Seat(fleet, tmp_path / "first", aside)
        second = Seat(fleet, tmp_path / "second", aside, key="17" * 32)
        async with (
            first.taken(in_memory(fleet, "one"), epoch=7) as earlier,
            second.taken(in_memory(fleet, "two"), epoch=8) as later,
        ):
            await until(lambda: first.warned and second.warned)
            await asyncio.sleep(1.0)
            assert not earlier.done()
            assert not later.done()
        assert any(f"another one, with key {second.signer.key[:16]}…" in text for text in first.warned)
        assert any(f"another one, with key {first.signer.key[:16]}…" in text for text in second.warned)

    asyncio.run(way())


@pytest.mark.broker
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("answers", [True, False], ids=["by a copy", "by a copy that is silent"])
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
        first, second = (Seat(fleet, tmp_path / name, connect) for name in "ab")
        async with (
            MqttTransport(settings("ear")) as ear,
            first.taken(own, epoch=7, claim=True) as earlier,
            second.taken(own, epoch=8, answers=answers) as later,  # it has not asked
        ):
            with pytest.raises(PlaceTaken) as told:
                async with asyncio.timeout(20):
                    await earlier
            assert not later.done()
            who = second.signer.key[:16] if answers else "another one, from a copy of this state folder"
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
