"""A broker and its clients inside one event loop: whole fleets in one process, for tests and simulations.

It behaves as an MQTT broker does at QoS 1: retained messages, wills, wildcards, sessions that outlive their
connection, and a queue per session that drops what does not fit without a word. Faults are drawn from a seed.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Self

from edge.errors import TransportError
from edge.transport.base import BirthAndWill, Limits, MakePresence, Message

LOG = logging.getLogger(__name__)


class BrokerSession:
    """What the broker keeps of one client id, also while nobody is connected under it."""

    def __init__(self) -> None:
        self.filters: set[str] = set()
        self.queue: deque[Message] = deque()
        self.news = asyncio.Event()  # a message came, or the owner's connection ended
        self.owner: MemoryTransport | None = None
        self.presence: BirthAndWill | None = None


class MemoryBroker:
    """Routes messages between `MemoryTransport`s; faults strike after the publisher's acknowledgement.

    Args:
        seed: Of the random generator that draws the faults.
        loss: Share of deliveries that never come, as when a broker's queue overflows.
        repeat: Share of deliveries that come twice.
        reorder: Share of deliveries that are held back, and so come out of order.
        delay_s: How long a delivery is held back at most.
        max_queued: Messages a session may have waiting; what comes then is dropped (Mosquitto's default).
        sleep: Waits; a simulation passes its virtual clock's.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        loss: float = 0.0,
        repeat: float = 0.0,
        reorder: float = 0.0,
        delay_s: float = 0.01,
        max_queued: int = 1000,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._random = random.Random(seed)  # noqa: S311 - faults, not secrets
        self._loss, self._repeat, self._reorder, self._delay_s = loss, repeat, reorder, delay_s
        self._max_queued = max_queued
        self._sleep = sleep
        self._sessions: dict[str, BrokerSession] = {}
        self._retained: dict[str, Message] = {}
        self._late: set[asyncio.Task[None]] = set()
        self.is_up = asyncio.Event()
        self.is_up.set()

    def stop(self) -> None:
        """Goes down: publishes wait. Sessions and retained messages are kept, as with persistence on."""
        self.is_up.clear()

    def start(self) -> None:
        """Comes up again; every client that is still there publishes its birth again."""
        self.is_up.set()
        for session in self._sessions.values():
            session.presence = session.owner.make_presence() if session.owner else None
            if session.presence is not None:
                self.route(Message(session.presence.topic, session.presence.birth), retain=True)

    def kill(self, client_id: str) -> None:
        """Ends the client's connection as a SIGKILL would: its will is published, its session kept.

        The transport ends with it: its `messages` end, and its publishes raise `TransportError`.
        """
        presence = self._sessions[client_id].presence
        self.close_session(client_id)
        if presence is not None:
            self.route(Message(presence.topic, presence.will), retain=True)

    def open_session(
        self, client_id: str, owner: "MemoryTransport", presence: BirthAndWill | None
    ) -> BrokerSession:
        """Opens the session of `client_id`, as it was left; who held it is thrown out, as in MQTT."""
        session = self._sessions.setdefault(client_id, BrokerSession())
        session.news.set()
        session.owner, session.presence = owner, presence
        if presence is not None:
            self.route(Message(presence.topic, presence.birth), retain=True)
        return session

    def close_session(self, client_id: str) -> None:
        """Closes the connection of `client_id`; its session stays."""
        session = self._sessions[client_id]
        session.owner = session.presence = None
        session.news.set()

    def route(self, message: Message, *, retain: bool) -> None:
        """Stores a retained message (an empty payload clears it) and delivers to every matching session."""
        if retain and message.payload:
            self._retained[message.topic] = message._replace(retained=True)
        elif retain:
            self._retained.pop(message.topic, None)
        for session in self._sessions.values():
            if any(matches(pattern, message.topic) for pattern in session.filters):
                self._deliver(session, message)

    def send_retained(self, session: BrokerSession, topic_filter: str) -> None:
        """Sends what a new subscription gets first; it is never lost: nothing else would bring it again."""
        for topic, message in list(self._retained.items()):
            if matches(topic_filter, topic):
                self._enqueue(session, message)

    def _deliver(self, session: BrokerSession, message: Message) -> None:
        for _ in range(1 + (self._random.random() < self._repeat)):
            if self._random.random() < self._loss:
                continue
            if self._random.random() < self._reorder:
                task = asyncio.ensure_future(self._hold_back(session, message))
                self._late.add(task)
                task.add_done_callback(self._late.discard)
            else:
                self._enqueue(session, message)

    async def _hold_back(self, session: BrokerSession, message: Message) -> None:
        await self._sleep(self._random.uniform(0, self._delay_s))
        self._enqueue(session, message)

    def _enqueue(self, session: BrokerSession, message: Message) -> None:
        if len(session.queue) < self._max_queued:
            session.queue.append(message)
            session.news.set()


class MemoryTransport:
    """A client of a `MemoryBroker` in the same event loop; see `edge.transport.base.Transport`."""

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        presence: MakePresence | None = None,
        limits: Limits = Limits(max_packet_bytes=2_000_000, max_in_flight=16),  # noqa: B008 - a constant
    ) -> None:
        self.limits = limits
        self._broker = broker
        self._client_id = client_id
        self._presence = presence
        self._window = asyncio.Semaphore(limits.max_in_flight)
        self._session: BrokerSession | None = None

    async def __aenter__(self) -> Self:
        await self._broker.is_up.wait()
        self._session = self._broker.open_session(self._client_id, self, self.make_presence())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._is_connected and self._session is not None:
            presence = self._session.presence
            self._broker.close_session(self._client_id)
            if presence is not None:
                self._broker.route(Message(presence.topic, presence.will), retain=True)

    def make_presence(self) -> BirthAndWill | None:
        """Returns what the broker is to say of the next connection."""
        return None if self._presence is None else self._presence()

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> bool:
        """See `Transport.publish`; nothing expires here.

        Raises:
            TransportError: The transport has been left or killed.
        """
        if len(payload) + len(topic) > self.limits.max_packet_bytes:
            LOG.warning("%s: %d bytes, it takes %d", topic, len(payload), self.limits.max_packet_bytes)
            return False
        async with self._window:
            await asyncio.sleep(0)
            await self._broker.is_up.wait()
            self._connected()
            self._broker.route(Message(topic, bytes(payload)), retain=retain)
        return True

    async def subscribe(self, topic_filter: str) -> None:
        """See `Transport.subscribe`."""
        await self._broker.is_up.wait()
        session = self._connected()
        session.filters.add(topic_filter)
        self._broker.send_retained(session, topic_filter)

    async def unsubscribe(self, topic_filter: str) -> None:
        """See `Transport.unsubscribe`."""
        await self._broker.is_up.wait()
        self._connected().filters.discard(topic_filter)

    async def messages(self) -> AsyncIterator[Message]:
        """See `Transport.messages`."""
        session = self._connected()
        while self._is_connected:
            while session.queue and self._is_connected:
                yield session.queue[0]
                if self._is_connected:  # else it comes again in the next session
                    session.queue.popleft()
            session.news.clear()
            if not session.queue and self._is_connected:
                await session.news.wait()

    @property
    def _is_connected(self) -> bool:
        return self._session is not None and self._session.owner is self

    def _connected(self) -> BrokerSession:
        if self._session is None or self._session.owner is not self:
            raise TransportError(f"client {self._client_id} is not connected to the broker in memory")
        return self._session


def matches(topic_filter: str, topic: str) -> bool:
    """Tells whether `topic` falls under a filter: `+` is one level, `#` all that follow (MQTT 5, 4.7)."""
    pattern, levels = topic_filter.split("/"), topic.split("/")
    for index, level in enumerate(pattern):
        if level == "#":
            return True
        if index == len(levels) or level not in ("+", levels[index]):
            return False
    return len(pattern) == len(levels)
