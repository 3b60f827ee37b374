"""One question to a broker: who lives under this name, and what does it keep of them?

It goes over a connection of its own, before the one that would throw another out. Who lives answers, signed,
to the nonces of all who asked: what answers under the very same key is a copy, and what answers under another
is somebody else who says so. Nothing that is not signed by the same key counts for more than a warning.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

from edge.complaints import Complaints
from edge.errors import ProtocolError
from edge.protocol.messages import Answer, Challenge, Presence
from edge.protocol.signing import Keyring, Signer, read_signed
from edge.transport.base import Message, Transport

LOG = logging.getLogger(__name__)


class Seat(NamedTuple):
    """What one process at a time may have: a name in a fleet, by its topics."""

    fleet: str
    presence: str  # retained, signed by whoever has it
    challenge: str
    answer: str


class Waits(NamedTuple):
    """How long is waited, in seconds."""

    quick_s: float = 0.5  # what is retained has come by then, and whoever is not busy has answered
    answer_within_s: float = 10.0  # of one that is said to be online and may be busy
    ask_every_s: float = 2.0
    doubt_every_s: float = 10.0  # strangers must not keep anybody busy with doubts about itself
    answer_every_s: float = 0.2  # one signature answers all that was asked meanwhile


class Found(NamedTuple):
    """What a broker knows of a seat."""

    holder: Answer | None = None  # another that lives, proved by the very same key
    stranger: Answer | None = None  # another that lives, under a key of its own
    stranger_key: str = ""
    session: int | None = None  # the epoch of the retained presence, where the same key has signed it
    is_online: bool = False  # as that says


class Asker(NamedTuple):
    """Who asks."""

    key: str  # public
    signer: Signer
    session: str  # of this process: its own answer does not count
    epoch: int  # of its session; its own presence does not count
    host: str


class Inquiry:
    """One question about one seat.

    Args:
        seat: What is asked for.
        asker: Who asks.
        waits: How long it waits.
        filters: What is subscribed to besides, for `hear`.
        hear: Gets what comes there.
    """

    def __init__(
        self,
        seat: Seat,
        asker: Asker,
        waits: Waits,
        filters: tuple[str, ...] = (),
        hear: Callable[[Message], None] = lambda message: None,
    ) -> None:
        self._seat, self._asker, self._waits = seat, asker, waits
        self._filters, self._hear = filters, hear
        self._nonce = secrets.token_hex(16)
        self._keyring = Keyring()
        self._found = Found()
        self._news = asyncio.Event()
        self._complain = Complaints(LOG.warning, time.monotonic)

    async def run(self, transport: Transport, *, is_settled: bool) -> Found:
        """Asks, and waits for as long as there may be an answer.

        Args:
            transport: Not entered yet, under a client id of its own.
            is_settled: Whether the asker has had the seat: then what its own session left there is proof
                enough that nobody came since, and nobody is asked.
        """
        async with transport:
            # Before it subscribes: in amqtt a subscription waits for what is retained under the one before.
            listening = asyncio.create_task(self._listen(transport))
            try:
                for topic in (self._seat.answer, *self._filters, self._seat.presence):
                    await transport.subscribe(topic)
                if is_settled:
                    await self._wait(self._waits.quick_s, lambda: self._found.session is not None)
                if not (is_settled and self._found.session == self._asker.epoch):
                    await self._ask(transport)
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
        return self._found

    async def _ask(self, transport: Transport) -> None:
        deadline = time.monotonic() + self._waits.answer_within_s
        pause_s = self._waits.quick_s
        while True:
            challenge = Challenge(nonce=self._nonce, session=self._asker.session, host=self._asker.host)
            topic = self._seat.challenge
            await transport.publish(topic, self._asker.signer.seal(topic, challenge))
            await self._wait(pause_s, lambda: self._found.holder is not None)
            is_over = self._found.holder is not None or time.monotonic() >= deadline
            if is_over or not self._is_worth_waiting:
                return
            pause_s = self._waits.ask_every_s

    @property
    def _is_worth_waiting(self) -> bool:
        return self._found.is_online and self._found.session != self._asker.epoch

    async def _wait(self, seconds: float, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
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
        if message.topic == self._seat.presence:
            self._take_presence(message)
        elif message.topic == self._seat.answer:
            self._take_answer(message)
        else:
            self._hear(message)

    def _take_presence(self, message: Message) -> None:
        signed = read_signed(message.payload)
        if signed.key == self._asker.key:
            opened = self._keyring.open(message.topic, signed, Presence)
            self._found = self._found._replace(session=opened.stamp.epoch, is_online=opened.record.online)
            self._news.set()

    def _take_answer(self, message: Message) -> None:
        if self._nonce.encode() not in message.payload:  # it costs nothing
            return
        opened = self._keyring.open(message.topic, read_signed(message.payload), Answer)
        answer = opened.record
        if answer.fleet != self._seat.fleet or answer.session == self._asker.session:
            return
        if self._nonce not in answer.nonces:
            return
        if opened.key == self._asker.key:
            self._found = self._found._replace(holder=answer)
            self._news.set()
        else:
            self._found = self._found._replace(stranger=answer, stranger_key=opened.key)
