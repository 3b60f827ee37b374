"""The place of a process under its name: there is one, and who has it is asked before it is taken.

A coordinator and a device each have a client id at the broker that follows from their key, so two keys never
throw each other out. Two processes with one key (a copied state folder) would, for ever. Therefore each asks
over a connection of its own before it connects under that id, at its start and whenever its connection broke
(`edge.delivery.inquiry`). Who lives answers, signed; the retained presence of one that was killed does not,
and holds nobody up for long. The later one is told, and ends; whoever was replaced while it was out of touch
ends, too, for what it signs is out of date by then. Only the very same key ends anybody: whatever else is
said under this name is told, and no more.
"""

import asyncio
import platform
import re
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from edge.delivery.inquiry import Asker, Found, Inquiry, Seat, Waits
from edge.errors import BrokerRefused, PlaceTaken, TransportError, Unproven
from edge.protocol.messages import MOST_NONCES, Answer, Challenge, Presence, decode_message
from edge.protocol.signing import Keyring, Signer, read_signed
from edge.transport.base import Message, Transport

FRESH_S = 5.0  # who has asked at its start need not ask again to connect
Publish = Callable[..., Awaitable[bool]]


class Place:
    """One process's claim to its name.

    Args:
        seat: The name.
        signer: Signs what is asked, and what is answered until `take`.
        connect: Makes a transport under a client id of its own, not entered yet.
        taken: Makes the error of who finds a copy of itself there; whether it ran already is told too.
        warn: Told of copies that asked and of other keys that use this name.
        clock: Unix time in seconds.
        waits: How long it waits.
    """

    def __init__(
        self,
        seat: Seat,
        signer: Signer,
        connect: Callable[[], Transport],
        taken: Callable[[Found, bool], PlaceTaken],
        warn: Callable[[str], object],
        clock: Callable[[], float] = time.time,
        waits: Waits = Waits(),  # noqa: B008 - it is frozen
    ) -> None:
        self.seat = seat
        self._signer = signer
        self._connect = connect
        self._taken = taken
        self._warn = warn
        self._waits = waits
        self._since = clock()
        self._session = secrets.token_hex(16)
        self._host = re.sub(r"[^A-Za-z0-9._-]", "-", platform.node())[:64]
        self._keyring = Keyring()
        self._nonces: deque[str] = deque(maxlen=MOST_NONCES)
        self._asked_at = float("-inf")
        self._is_seated = False
        self._was_asked = asyncio.Event()
        self._doubt = asyncio.Event()

    def take(self, signer: Signer) -> None:
        """Begins this session, whose signer it is."""
        self._signer = signer

    async def look(
        self, filters: tuple[str, ...] = (), hear: Callable[[Message], None] = lambda _: None
    ) -> Found:
        """Asks who is there, at the start.

        Args:
            filters: What is listened to besides.
            hear: Gets what comes there.

        Raises:
            PlaceTaken: A copy of this process is.
            TransportError: The broker cannot be asked.
        """
        found = await self._ask(filters, hear)
        if found.holder:
            raise self._taken(found, self._is_seated)
        self._asked_at = time.monotonic()
        return found

    async def claim(self, was_taken: bool = False) -> None:
        """Makes sure that the place is free, or this process's, before it connects.

        Args:
            was_taken: The broker has said that another took the connection.

        Raises:
            PlaceTaken: A copy of this process has it, or has had it since.
            TransportError: The broker cannot be asked.
        """
        is_fresh, self._asked_at = time.monotonic() - self._asked_at < FRESH_S, float("-inf")
        if is_fresh and not was_taken:
            return
        try:
            found = await self._ask()
        except BrokerRefused:  # it takes no client under another id; what else is wrong, connecting tells
            return
        is_followed = self._is_seated and found.session is not None and found.session > self._signer.epoch
        if found.holder or is_followed:
            raise self._taken(found, self._is_seated)
        if found.stranger:
            self.tell_stranger(found)

    def hear(self, message: Message) -> None:
        """Takes what came under this name: presence and challenges.

        Raises:
            ProtocolError: It is none.
        """
        if message.topic == self.seat.presence:
            self._hear_presence(message)
        elif message.topic == self.seat.challenge:
            self._hear_challenge(message)

    def loops(
        self, publish: Publish, version: Callable[[], int] = lambda: 0
    ) -> list[Coroutine[Any, Any, None]]:
        """Returns what has to run while the place is held: it answers, and looks after its presence.

        Args:
            publish: Of the connection.
            version: The current one, for answers.
        """
        return [self._answer(publish, version), self._keep(publish)]

    async def subscribe(self, transport: Transport) -> None:
        """Asks for what `hear` takes; a broker that forbids it leaves the place unwatched, and is told."""
        for topic in (self.seat.presence, self.seat.challenge):
            try:
                await transport.subscribe(topic)
            except BrokerRefused as error:
                self._warn(f"{error}: copies of this state folder are not found out; allow it to read there")

    def tell_stranger(self, found: Found) -> None:
        """Tells of another key under this name, which ends nobody."""
        where = f" on {found.stranger.host}" if found.stranger and found.stranger.host else ""
        self._warn(f"another one, with key {found.stranger_key[:16]}…, answers under this name{where}")

    def _hear_presence(self, message: Message) -> None:
        if not message.payload:
            self._doubt.set()
            return
        try:
            signed = read_signed(message.payload)
        except Unproven:
            self._doubt.set()
            raise
        is_own = (signed.key, signed.epoch) == (self._signer.key, self._signer.epoch)
        if not is_own and self._doubt.is_set():
            return  # it is looked into anyway, and strangers may send what they like
        self._doubt.set()
        opened = self._keyring.open(message.topic, signed, Presence)
        if is_own and opened.record.online:
            self._is_seated = True
            self._doubt.clear()
        elif signed.key != self._signer.key:
            self._warn(f"another one, with key {signed.key[:16]}…, says that it is here under this name")

    def _hear_challenge(self, message: Message) -> None:
        signed = read_signed(message.payload)
        challenge = decode_message(bytes(signed.body), Challenge)
        if challenge.session == self._session:
            return
        self._nonces.append(challenge.nonce)
        if self._was_asked.is_set():
            return
        self._was_asked.set()
        if signed.key == self._signer.key:
            self._keyring.open(message.topic, signed, Challenge)
            where = f" on {challenge.host}" if challenge.host else ""
            self._warn(
                f"a copy of this state folder{where} asked for this place, and is told that it is taken"
            )

    async def _answer(self, publish: Publish, version: Callable[[], int]) -> None:
        """Answers all that was asked since the last time, in one message."""
        while True:
            await self._was_asked.wait()
            self._was_asked.clear()
            nonces = tuple(self._nonces)
            self._nonces.clear()
            answer = Answer(
                fleet=self.seat.fleet,
                nonces=nonces,
                session=self._session,
                epoch=self._signer.epoch,
                version=version(),
                since=self._since,
                host=self._host,
            )
            await publish(self.seat.answer, self._signer.seal(self.seat.answer, answer))
            await asyncio.sleep(self._waits.answer_every_s)

    async def _keep(self, publish: Publish) -> None:
        """Puts right what is said of this place and not so, and asks whether another is there.

        Where brokers are bridged a copy may be there without throwing this one out; the earlier one yields.
        """
        while True:
            await self._doubt.wait()
            self._doubt.clear()
            birth = self._signer.seal(self.seat.presence, Presence(online=True))
            await publish(self.seat.presence, birth, retain=True)
            try:
                found = await self._ask(is_settled=False)
            except TransportError:
                found = Found()
            other = found.holder
            if other and (other.epoch, other.session) > (self._signer.epoch, self._session):
                raise self._taken(found, True)
            await asyncio.sleep(self._waits.doubt_every_s)

    async def _ask(
        self,
        filters: tuple[str, ...] = (),
        hear: Callable[[Message], None] = lambda _: None,
        is_settled: bool | None = None,
    ) -> Found:
        signer = self._signer
        asker = Asker(signer.key, signer, self._session, signer.epoch, self._host)
        settled = self._is_seated if is_settled is None else is_settled
        inquiry = Inquiry(self.seat, asker, self._waits, filters, hear)
        return await inquiry.run(self._connect(), is_settled=settled)


def describe(answer: Answer) -> str:
    """Describes another process by what it says of itself, after its name."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(answer.since))
    host = f" on {answer.host}" if answer.host else ""
    return f"{host}, there since {since}"
