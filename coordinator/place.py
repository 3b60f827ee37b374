"""The coordinator's place in its fleet: there is one, and who has it is asked before it is taken.

Two coordinators of one fleet have the same client id, so a broker throws out one for the other, for ever.
Therefore each asks over a connection of its own before it connects under that id, at its start and whenever
its connection broke. Who lives answers, signed; the retained presence of one that was killed does not, and
holds nobody up for longer than `ANSWER_WITHIN_S`. Who was thrown out by another ends, and does not come back.

What the broker still has of this fleet is heard on the way: the epochs of earlier sessions, above which the
new one must be, also where this state folder is an old backup and knows of none.
"""

import asyncio
import logging
import platform
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from edge.complaints import Complaints
from edge.errors import BrokerRefused, PlaceTaken, ProtocolError, TransportError, Unproven
from edge.protocol.messages import Answer, Challenge, Manifest, Presence, decode_message, encode_message
from edge.protocol.signing import Keyring, Opened, R, Signer, read_signed
from edge.protocol.topics import AnswerTopic, CoordinatorTopic, Topics, VersionTopic
from edge.transport.base import Message, Transport

LOG = logging.getLogger(__name__)

QUICK_S = 0.5  # what is retained has come by then, and a coordinator that is not busy has answered
ANSWER_WITHIN_S = 10.0
ASK_EVERY_S = 2.0
DOUBT_EVERY_S = 10.0  # strangers must not keep a coordinator busy with doubts about itself
FRESH_S = 5.0  # who has asked at its start need not ask again to connect


class Found(NamedTuple):
    """What a fleet's broker knows of its coordinator."""

    holder: Answer | None = None  # another that lives
    holder_key: str = ""
    presence: Presence | None = None  # what is retained
    session: int | None = None  # the epoch that it was signed in, where this coordinator's key has signed it
    epoch: int = 0  # the latest that this coordinator's key has signed
    version: int = -1  # announced in it
    strangers: frozenset[str] = frozenset()  # other keys that have signed retained manifests


class Place:
    """One coordinator's claim to its fleet.

    Args:
        fleet: The fleet's name.
        key: The coordinator's public key.
        connect: Makes a transport under a client id of its own, not entered yet.
        clock: Unix time in seconds.
        answer_within_s: How long one that is said to be online may take, as it is busy with updates.
        ask_every_s: How often it is asked meanwhile.
    """

    def __init__(
        self,
        fleet: str,
        key: str,
        connect: Callable[[], Transport],
        clock: Callable[[], float] = time.time,
        answer_within_s: float = ANSWER_WITHIN_S,
        ask_every_s: float = ASK_EVERY_S,
    ) -> None:
        self._signer: Signer | None = None
        self._answer_within_s, self._ask_every_s = answer_within_s, ask_every_s
        self._fleet = fleet
        self._topics = Topics(fleet)
        self._key = key
        self._keyring = Keyring()
        self._connect = connect
        self._since = clock()
        self._session = secrets.token_hex(16)
        self._asked_at = float("-inf")
        self._is_seated = False
        self._doubt = asyncio.Event()

    @property
    def epoch(self) -> int:
        """Returns this session's epoch; 0 until it has one."""
        return self._signer.epoch if self._signer else 0

    def take(self, signer: Signer) -> None:
        """Begins this session, whose signer it is."""
        self._signer = signer

    async def look(self) -> Found:
        """Asks who is there.

        Raises:
            TransportError: The broker cannot be asked.
        """
        found = await self._ask()
        self._asked_at = time.monotonic()
        return found

    async def claim(self, was_taken: bool = False) -> None:
        """Makes sure that the place is free, or this coordinator's.

        Args:
            was_taken: The broker has said that another took it.

        Raises:
            PlaceTaken: Another coordinator has it, told by all that it says of itself. One that says nothing
                counts where this one had the place, and finds a later presence in it.
            TransportError: The broker cannot be asked.
        """
        is_fresh, self._asked_at = time.monotonic() - self._asked_at < FRESH_S, float("-inf")
        if is_fresh and not was_taken:
            return
        try:
            found = await self._ask()
        except BrokerRefused:  # it takes no client under another id; what else is wrong, connecting tells
            found = Found()
        except TransportError:
            if not was_taken:
                raise
            found = Found()
        is_followed = self._is_seated and found.session is not None and found.session > self.epoch
        if found.holder or was_taken or is_followed:
            raise self.taken(found)

    def taken(self, found: Found) -> PlaceTaken:
        """Makes the error of a coordinator that finds another in its place."""
        who = _describe(found) if found.holder else f"another client with the id {self._fleet}-coordinator"
        copy = ", from a copy of this state folder" if found.holder_key == self._key else ""
        if self.epoch:
            return PlaceTaken(
                f"fleet {self._fleet}: this coordinator lost its place to {who}{copy}; "
                "it has stopped, its state is on disk; run only one of them"
            )
        return PlaceTaken(
            f"fleet {self._fleet} is served already by {who}{copy}; stop that one first, "
            "or serve another --fleet"
        )

    def answer(self, challenge: bytes, version: int) -> bytes:
        """Answers a challenge.

        Raises:
            ProtocolError: It is none.
        """
        answer = Answer(
            fleet=self._fleet,
            nonce=decode_message(challenge, Challenge).nonce,
            session=self._session,
            epoch=self.epoch,
            version=version,
            since=self._since,
            host=re.sub(r"[^A-Za-z0-9._-]", "-", platform.node())[:64],
        )
        return self._seal(self._topics.answer, answer)

    def hear(self, presence: bytes) -> None:
        """Takes what is published as this coordinator's presence.

        Raises:
            ProtocolError: It is none.
        """
        try:
            signed = read_signed(presence)
        except Unproven:
            self._doubt.set()
            raise
        if (signed.key, signed.epoch) != (self._key, self.epoch):
            self._doubt.set()
            return
        opened = self._keyring.open(self._topics.coordinator, signed, Presence)
        if opened.record.online:
            self._is_seated = True
        else:
            self._doubt.set()

    async def keep(self, publish: Callable[..., Awaitable[bool]]) -> None:
        """Watches over the place for ever: what is said of it and not so is put right.

        Where brokers are bridged another may be there without throwing this one out; the earlier one yields.

        Args:
            publish: Of the coordinator's transport.

        Raises:
            PlaceTaken: A later session has it.
        """
        while True:
            await self._doubt.wait()
            self._doubt.clear()
            birth = self._seal(self._topics.coordinator, Presence(online=True))
            await publish(self._topics.coordinator, birth, retain=True)
            try:
                found = await self._ask()
            except TransportError:
                found = Found()
            other = found.holder
            if other and (other.epoch, other.session) > (self.epoch, self._session):
                raise self.taken(found)
            await asyncio.sleep(DOUBT_EVERY_S)

    async def _ask(self) -> Found:
        inquiry = Inquiry(
            self._fleet,
            self._key,
            self._session,
            self.epoch,
            self._answer_within_s,
            self._ask_every_s,
        )
        return await inquiry.run(self._connect())

    def _seal(self, topic: str, record: Answer | Presence) -> bytes:
        assert self._signer  # there is a session, or nobody listens yet
        return self._signer.seal(topic, record)


class Inquiry:
    """One question to a fleet: who coordinates it?

    Args:
        fleet: The fleet's name.
        key: Public, of who asks.
        session: Of who asks; its own answer does not count.
        epoch: Of who asks; its own presence does not count.
        answer_within_s, ask_every_s: See `Place`.
    """

    def __init__(
        self, fleet: str, key: str, session: str, epoch: int, answer_within_s: float, ask_every_s: float
    ) -> None:
        self._answer_within_s, self._ask_every_s = answer_within_s, ask_every_s
        self._fleet = fleet
        self._topics = Topics(fleet)
        self._key = key
        self._keyring = Keyring()
        self._session = session
        self._epoch = epoch
        self._nonce = secrets.token_hex(16)
        self._complain = Complaints(LOG.warning, time.monotonic)
        self._found = Found()
        self._answered = asyncio.Event()

    async def run(self, transport: Transport) -> Found:
        """Asks, and waits for as long as there may be an answer."""
        async with transport:
            # Before it subscribes: in amqtt a subscription waits for what is retained under the one before.
            listening = asyncio.create_task(self._listen(transport))
            try:
                for topic_filter in (
                    self._topics.coordinator,
                    self._topics.answer,
                    self._topics.version("+"),
                ):
                    await transport.subscribe(topic_filter)
                await self._ask(transport)
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
        return self._found

    async def _ask(self, transport: Transport) -> None:
        challenge = encode_message(Challenge(nonce=self._nonce))
        await transport.publish(self._topics.challenge, challenge)
        deadline = time.monotonic() + self._answer_within_s
        await self._wait(QUICK_S)
        while self._is_worth_waiting and not self._answered.is_set() and time.monotonic() < deadline:
            await transport.publish(self._topics.challenge, challenge)
            await self._wait(self._ask_every_s)

    @property
    def _is_worth_waiting(self) -> bool:
        presence = self._found.presence
        return presence is not None and presence.online and self._found.session != self._epoch

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._answered.wait()
        except TimeoutError:
            pass

    async def _listen(self, transport: Transport) -> None:
        async for message in transport.messages():
            try:
                self._take(message)
            except ProtocolError:  # strangers may write what they like
                continue
            except Exception as error:  # nothing that is received ends an inquiry
                self._complain.unforeseen(message.topic[:200], error)

    def _take(self, message: Message) -> None:
        match self._topics.parse(message.topic):
            case CoordinatorTopic() if message.payload:
                presence = self._open(message, Presence)
                session = presence.stamp.epoch if presence.key == self._key else None
                self._found = self._found._replace(presence=presence.record, session=session)
            case AnswerTopic():
                self._take_answer(self._open(message, Answer))
            case VersionTopic() if message.payload:
                self._take_manifest(self._open(message, Manifest))

    def _open(self, message: Message, kind: type[R]) -> Opened[R]:
        return self._keyring.open(message.topic, read_signed(message.payload), kind)

    def _take_answer(self, opened: Opened[Answer]) -> None:
        answer, key = opened.record, opened.key
        if (answer.fleet, answer.nonce) == (self._fleet, self._nonce) and answer.session != self._session:
            self._found = self._found._replace(holder=answer, holder_key=key)
            self._answered.set()

    def _take_manifest(self, opened: Opened[Manifest]) -> None:
        manifest, key = opened.record, opened.key
        found = self._found
        if manifest.fleet != self._fleet:
            return
        if key != self._key:
            self._found = found._replace(strangers=found.strangers | {key})
        elif (manifest.epoch, manifest.version) > (found.epoch, found.version):
            self._found = found._replace(epoch=manifest.epoch, version=manifest.version)


def _describe(found: Found) -> str:
    """Describes another coordinator by what it says of itself."""
    assert found.holder
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.holder.since))
    host = f" on {found.holder.host}" if found.holder.host else ""
    return (
        f"the coordinator{host} with key {found.holder_key[:16]}…, at version {found.holder.version} "
        f"and there since {since}"
    )
