"""A transport over MQTT 3.1.1 or 5 that mends itself.

Everything goes at QoS 1. The client id is stable and the session is kept by the broker, so what comes while
the connection is down is delivered afterwards. A message is acknowledged when its consumer asks for the next
one: an unread message is not lost by a kill, and the broker's window bounds what waits here (64 with MQTT 5;
with 3.1.1 the broker's own, 20 in Mosquitto; amqtt has none). Publishes that were under way when the
connection broke are published again after it, within the window.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self

from edge.complaints import Complaints
from edge.errors import BrokerRefused, PlaceTaken, TlsFailure, TransportError
from edge.transport.base import BirthAndWill, Limits, MakePresence, Message
from edge.transport.mqtt.dial import ProtocolRefused, Unanswered
from edge.transport.mqtt.paho import Incoming, Link, LinkLost, PublishRefused
from edge.transport.mqtt.refusals import Refusals
from edge.transport.mqtt.window import Window
from edge.transport.settings import MqttSettings

LOG = logging.getLogger(__name__)
MAX_QUEUED = 1000  # QoS 0 messages that no window bounds are dropped beyond this, as brokers do
FAREWELL_S = 5.0
MAX_CLAIMS = 3
STABLE_S = 10.0  # a connection that broke sooner adds to the back-off: two clients of one id must not race
AFTER_PROGRESS = -1  # attempts that count for less than none: a bad link must not be waited for, too
PROBE_S = 2.0  # amqtt leaves MQTT 5 unanswered; a broker that is only slow is spoken to in 3.1.1 then


class MqttTransport:
    """A client of an MQTT broker; see `edge.transport.base.Transport`.

    Args:
        settings: Where the broker is (`MqttSettings.from_url`).
        presence: Makes birth and will of each connection; None for a client that nobody watches.
        claim: Asked before every connection, with whether another client took the session; its `PlaceTaken`
            ends the transport for good. None has a client that is thrown out come back.
        generator: Draws the jitter of the back-off.
        sleep: Waits between attempts.
        clock: Seconds of any beginning.
        max_backoff_s: The longest wait between attempts.
    """

    def __init__(
        self,
        settings: MqttSettings,
        presence: MakePresence | None = None,
        *,
        claim: Callable[[bool], Awaitable[None]] | None = None,
        generator: random.Random | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        max_backoff_s: float = 30.0,
    ) -> None:
        self._settings = settings
        self._make_presence = presence
        self._presence: BirthAndWill | None = None  # of the present connection, or of the last one
        self._claim = claim
        self._random = generator or random.Random()  # noqa: S311 - jitter, not secrets
        self._sleep = sleep
        self._clock = clock
        self._max_backoff_s = max_backoff_s
        self._versions = ["5", "3.1.1"] if settings.protocol == "auto" else [settings.protocol]
        self._filters: dict[str, None] = {}  # in order of subscription
        self._queue: asyncio.Queue[Incoming | None] = asyncio.Queue()
        self._link: Link | None = None
        self._window = Window(settings.max_in_flight)
        self._complain = Complaints(LOG.warning, clock)
        self._inform = Complaints(LOG.info, clock)  # a bad link connects again several times a second
        self._refusals = Refusals(settings.place, self._complain)
        self._changed = asyncio.Event()  # connected, or left
        self._lost = asyncio.Event()
        self._was_taken = False
        self._connected_at = float("-inf")
        self._num_moved = 0  # messages that got through, in either direction: a link that moves is only bad
        self._fault: PlaceTaken | None = None
        self._is_left = False
        self._mending: asyncio.Task[None] | None = None

    @property
    def limits(self) -> Limits:
        """Returns the limits of the present connection, or of the last one.

        Raises:
            TransportError: There has been none.
        """
        if self._link is None:
            raise TransportError(f"broker {self._settings.place}: not connected yet")
        return self._link.limits

    @property
    def version(self) -> str:
        """Returns the version of MQTT that is spoken: `5` or `3.1.1`."""
        return self._versions[0]

    async def __aenter__(self) -> Self:
        await self._connect_first()
        self._mending = asyncio.create_task(self._mend())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_left = True
        if self._mending is not None:
            self._mending.cancel()
            await asyncio.wait([self._mending])
        link = self._link
        try:
            if link is not None and link.is_alive and self._presence is not None:
                async with asyncio.timeout(FAREWELL_S):
                    await link.publish(self._presence.topic, self._presence.will, retain=True, expiry_s=None)
        except (TransportError, TimeoutError):
            pass  # the broker's will says the same
        finally:
            if link is not None:
                link.disconnect()
            self._changed.set()
            self._queue.put_nowait(None)

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> bool:
        """See `Transport.publish`.

        Raises:
            PlaceTaken: As `claim` said; nothing goes out any more.
            TransportError: The transport has been left.
        """
        sending = self._refusals.sending(topic)
        while not sending.is_hopeless:
            link, window = await self._connected()
            async with window.place(is_alone=sending.is_alone):
                if not link.is_alive:
                    continue
                LOG.debug("to %s: %d bytes%s", topic, len(payload), ", retained" if retain else "")
                try:
                    await link.publish(topic, payload, retain=retain, expiry_s=expiry_s)
                except LinkLost:
                    sending.cut()
                except PublishRefused as error:
                    self._refusals.tell(topic, len(payload), str(error))
                    return False
                else:
                    self._num_moved += 1
                    self._refusals.forget(topic)
                    return True
        self._refusals.tell_cut(topic, len(payload))
        return False

    async def subscribe(self, topic_filter: str) -> None:
        """See `Transport.subscribe`.

        Raises:
            BrokerRefused: The broker does not allow it.
            TransportError: The transport has been left.
        """
        await self._try(lambda link: link.subscribe(topic_filter))
        self._filters[topic_filter] = None

    async def unsubscribe(self, topic_filter: str) -> None:
        """See `Transport.unsubscribe`.

        Raises:
            TransportError: The transport has been left.
        """
        self._filters.pop(topic_filter, None)
        await self._try(lambda link: link.unsubscribe(topic_filter))

    async def messages(self) -> AsyncIterator[Message]:
        """See `Transport.messages`; a message counts as received when the next one is asked for.

        Raises:
            PlaceTaken: As `claim` said.
        """
        while not self._is_left and (incoming := await self._queue.get()) is not None:
            message = incoming.message
            retained = ", retained" if message.retained else ""
            LOG.debug("from %s: %d bytes%s", message.topic, len(message.payload), retained)
            yield message
            incoming.acknowledge()
            self._num_moved += not message.retained
        if self._fault is not None:
            raise self._fault

    async def _connect_first(self) -> None:
        """Connects; what cannot be reached is tried again for `wait_for_broker_s`."""
        deadline = self._clock() + self._settings.wait_for_broker_s
        attempt = 0
        while True:
            try:
                await self._connect()
                return
            except (BrokerRefused, TlsFailure, PlaceTaken):
                raise
            except TransportError as error:
                pause = self._backoff_s(attempt)
                attempt += 1
                # Who was thrown out at once asks again, and is told by whom.
                may_be_taken = isinstance(error, LinkLost) and self._claim and attempt < MAX_CLAIMS
                if self._clock() + pause > deadline and not may_be_taken:
                    raise
                if attempt == 1:
                    LOG.warning("%s; trying again until it answers", error)
            await self._sleep(pause)

    async def _mend(self) -> None:
        """Connects again whenever the connection has broken, for as long as the transport is used."""
        attempt = num_moved = 0
        while True:
            await self._lost.wait()
            why = f" ({self._link.ended})" if self._link and self._link.ended else ""
            told = f"broker {self._settings.place}: the connection is lost{why}; connecting again"
            self._complain(told)
            if self._clock() - self._connected_at >= STABLE_S:
                attempt = 0
            while self._lost.is_set():
                if self._num_moved > num_moved:
                    attempt, num_moved = AFTER_PROGRESS, self._num_moved
                await self._sleep(self._backoff_s(attempt))
                attempt += 1
                try:
                    await self._connect()
                except PlaceTaken as error:
                    self._end(error)
                    return
                except TransportError as error:
                    self._complain(f"attempt {attempt}: {error}", kind=str(error))
                except Exception as error:  # without this loop nobody would connect again
                    self._complain.unforeseen(f"connecting to {self._settings.place}", error)
                else:
                    self._inform(f"broker {self._settings.place}: connected again")

    def _backoff_s(self, attempt: int) -> float:
        """Draws a pause, of full jitter: a fleet must not come back at once when its broker does."""
        return self._random.uniform(0, min(self._max_backoff_s, 0.5 * 2.0 ** min(attempt, 16)))

    async def _connect(self) -> None:
        """Tries once: claim, connection, subscriptions, birth; only then publishes go out."""
        if self._claim is not None:
            await self._claim(self._was_taken)
        presence = None if self._make_presence is None else self._make_presence()
        link = await self._open_link(presence)
        self._presence = presence
        self._lost.clear()
        try:
            await link.subscribe(*self._filters)
            if presence is not None:
                await self._give_birth(link, presence)
        except BaseException:
            link.close()
            raise
        self._connected_at = self._clock()
        self._link, self._window = link, Window(link.limits.max_in_flight)
        self._changed.set()

    async def _give_birth(self, link: Link, presence: BirthAndWill) -> None:
        """Says that the client is there; a broker that does not take it is no reason to be nowhere."""
        try:
            await link.publish(presence.topic, presence.birth, retain=True, expiry_s=None)
        except PublishRefused as error:
            self._refusals.tell(presence.topic, len(presence.birth), str(error))

    async def _open_link(self, presence: BirthAndWill | None) -> Link:
        """Opens a link in the first version of MQTT that the broker takes; later ones are not tried again."""
        while True:
            link = Link(self._settings, self.version, presence, self._received, self._lose)
            is_last = len(self._versions) == 1
            try:
                await link.open(self._settings.connect_timeout_s if is_last else PROBE_S)
            except (ProtocolRefused, Unanswered):
                if is_last:
                    raise
                self._versions.pop(0)
                continue
            except LinkLost:
                self._was_taken = link.was_taken
                raise
            del self._versions[1:]  # a broker that dies in a later handshake has not forgotten its version
            return link

    async def _try(self, ask: Callable[[Link], Awaitable[None]]) -> None:
        """Asks the broker for something, over reconnections if need be."""
        while True:
            link, _ = await self._connected()
            with contextlib.suppress(LinkLost):
                return await ask(link)

    async def _connected(self) -> tuple[Link, Window]:
        while self._link is None or not self._link.is_alive:
            if self._is_left:
                break
            self._changed.clear()
            await self._changed.wait()
        if self._fault is not None:
            raise self._fault
        if self._is_left or self._link is None:
            raise TransportError(f"broker {self._settings.place}: the transport has been left")
        return self._link, self._window

    def _lose(self, was_taken: bool) -> None:
        self._was_taken = was_taken
        self._lost.set()

    def _end(self, fault: PlaceTaken) -> None:
        """Gives `fault` to whoever publishes or listens; the presence, which is another's, stays."""
        self._fault, self._is_left = fault, True
        self._changed.set()
        self._queue.put_nowait(None)

    def _received(self, incoming: Incoming) -> None:
        if incoming.qos > 0 or self._queue.qsize() < MAX_QUEUED:
            self._queue.put_nowait(incoming)
