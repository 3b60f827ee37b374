"""As much of an MQTT 3.1.1 client as a device's double needs, on an asyncio protocol and nothing else.

A thousand clients of a library take the processor that the coordinator is to be measured on. This one
publishes at QoS 1, acknowledges what comes, pings, and does not reconnect: a double whose connection breaks
ends the measurement.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ = 1, 2, 3, 4, 8, 9, 12
KEEPALIVE_S = 60


class Will(NamedTuple):
    """What the broker retains when the connection breaks."""

    topic: str
    payload: bytes


class Ears(NamedTuple):
    """Who is told what comes, in the event loop."""

    on_message: Callable[[str, bytes], None]
    on_acknowledged: Callable[[int], None]  # by the number that `publish` returned
    on_lost: Callable[[], None]


class Mqtt(asyncio.Protocol):
    """One connection.

    Args:
        client_id: Of a clean session.
        will: What the broker says after an unclean end.
        ears: Who is told.
    """

    def __init__(self, client_id: str, will: Will, ears: Ears) -> None:
        self._client_id, self._will, self._ears = client_id, will, ears
        self._unread = b""
        self._number = 0
        self._subscribed: dict[int, asyncio.Future[None]] = {}
        self.is_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        """Publishes at QoS 1; returns the number that its acknowledgement bears."""
        number = self._next()
        body = _text(topic) + number.to_bytes(2) + payload
        self._send(PUBLISH, 0b0010 | retain, body)
        return number

    async def subscribe(self, topic_filter: str) -> None:
        """Subscribes at QoS 1."""
        number = self._next()
        self._subscribed[number] = asyncio.get_running_loop().create_future()
        self._send(SUBSCRIBE, 0b0010, number.to_bytes(2) + _text(topic_filter) + b"\1")
        await self._subscribed[number]

    def close(self) -> None:
        """Cuts the connection."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says CONNECT, with a will at QoS 1 that is retained."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        flags = b"\x2e"  # clean session, will, its QoS 1, retained
        will = _text(self._will.topic) + len(self._will.payload).to_bytes(2) + self._will.payload
        settings = b"\0\4MQTT\4" + flags + KEEPALIVE_S.to_bytes(2)
        self._send(CONNECT, 0, settings + _text(self._client_id) + will)
        self._ping()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the owner."""
        self._pinging.cancel()
        if not self.is_ready.done():
            self.is_ready.set_exception(ConnectionError(f"{self._client_id}: the broker hung up"))
        self._ears.on_lost()

    def data_received(self, data: bytes) -> None:
        """Takes every packet that is whole."""
        data, start = self._unread + data, 0
        while (found := _packet(data, start)) is not None:
            first, begin, end = found
            self._take(first, data[begin:end])
            start = end
        self._unread = data[start:]

    def _take(self, first: int, body: bytes) -> None:
        match first >> 4:
            case 3:
                size = 2 + int.from_bytes(body[:2])
                topic = body[2:size].decode()
                if first & 0b0110:
                    self._send(PUBACK, 0, body[size : size + 2])
                    size += 2
                self._ears.on_message(topic, body[size:])
            case 4:
                self._ears.on_acknowledged(int.from_bytes(body[:2]))
            case 9:
                self._subscribed.pop(int.from_bytes(body[:2])).set_result(None)
            case 2 if body[1] == 0:
                self.is_ready.set_result(None)
            case 2:
                self.is_ready.set_exception(ConnectionError(f"{self._client_id}: refused, {body[1]}"))

    def _ping(self) -> None:
        self._pinging = asyncio.get_running_loop().call_later(KEEPALIVE_S / 2, self._ping)
        if self.is_ready.done():
            self._send(PINGREQ, 0, b"")

    def _next(self) -> int:
        self._number = self._number % 65535 + 1
        return self._number

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._transport.write(bytes([kind << 4 | flags]) + _length(len(body)) + body)


def _text(text: str) -> bytes:
    return len(text.encode()).to_bytes(2) + text.encode()


def _length(size: int) -> bytes:
    digits = bytearray()
    while True:
        size, digit = divmod(size, 128)
        digits.append(digit | (0x80 if size else 0))
        if not size:
            return bytes(digits)


def _packet(data: bytes, start: int) -> tuple[int, int, int] | None:
    """Returns the first byte of the packet at `start`, and where its body begins and ends, if all is here."""
    size = shift = 0
    for place in range(start + 1, min(start + 5, len(data))):
        size |= (data[place] & 0x7F) << shift
        shift += 7
        if not data[place] & 0x80:
            end = place + 1 + size
            return (data[start], place + 1, end) if end <= len(data) else None
    return None
