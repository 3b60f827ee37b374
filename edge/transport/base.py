"""The contract of every transport: publish, subscribe, and an endless stream of messages.

Delivery is at least once and in any order; a message may come twice. A transport reconnects by itself, with
jittered back-off and under the same client id, subscribes again and publishes its birth again. Nothing is
kept over the end of the process: what must survive lies in the spool.
"""

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import NamedTuple, Protocol, Self


class Message(NamedTuple):
    """One message as it came from the broker."""

    topic: str
    payload: bytes
    retained: bool = False


class BirthAndWill(NamedTuple):
    """What is retained at `topic` while connected (birth), and after an unclean end (will)."""

    topic: str
    birth: bytes
    will: bytes


MakePresence = Callable[[], BirthAndWill]  # called at each connection: what is signed once is not said twice


class Limits(NamedTuple):
    """What the other side takes, learnt when connecting where it says so."""

    max_packet_bytes: int  # one publish, header included
    max_in_flight: int  # publishes without acknowledgement


class Transport(Protocol):
    """A connection that mends itself.

    Used as `async with transport:`. Entering connects, and raises `TransportError` (or `BrokerRefused`,
    `TlsFailure`) where the first attempt is refused for good; leaving publishes the will's payload at the
    presence topic, retained, and disconnects cleanly.
    """

    @property
    def limits(self) -> Limits:
        """Returns the limits of the present connection."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> bool:
        """Publishes at least once; returns when the broker has acknowledged, over reconnections if need be.

        What the broker refuses (rights, size, quota) ends nobody: it is told and counted here, False is
        returned, and the message counts as lost on its way. At most `limits.max_in_flight` are under way at a
        time; further callers wait for their turn.
        """
        ...

    async def subscribe(self, topic_filter: str) -> None:
        """Adds a subscription (`+` and `#` as in MQTT), kept over reconnections."""
        ...

    async def unsubscribe(self, topic_filter: str) -> None:
        """Ends a subscription; unknown filters are ignored."""
        ...

    def messages(self) -> AsyncIterator[Message]:
        """Yields all messages of all subscriptions, in order of arrival, until the transport is left.

        For one consumer. A message counts as received when the next one is asked for: one that was being
        handled when the client was killed comes again. Few messages come ahead of that, so a consumer never
        waits for a later message while it handles one.
        """
        ...
