"""One connection to an MQTT broker: the paho client inside the event loop, no thread and no reconnection.

paho and not aiomqtt, which acknowledges at once and drops what a full queue cannot take: here a message is
acknowledged when its consumer is through with it, so that the broker's own window holds a fast sender back
and a kill loses nothing.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple

from paho.mqtt.client import Client, DisconnectFlags, MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge.errors import BrokerRefused, TransportError
from edge.transport.base import BirthAndWill, Limits, Message
from edge.transport.mqtt.dial import Unanswered, dial, new_client, refusal, unanswered
from edge.transport.mqtt.refusals import SIZE, advice
from edge.transport.settings import MqttSettings

MAX_READS = 4  # packets in a row, before others have their turn
TAKEN_OVER = 0x8E  # MQTT 5, 3.14.2.1
HEADER_BYTES = 32  # of a publish besides topic and payload: fixed header, packet id, properties


class LinkLost(TransportError):  # noqa: N818
    """The connection broke; what was not acknowledged is to be published again."""


class PublishRefused(BrokerRefused):
    """The broker does not take a message, or it is larger than the broker takes; told with what to do."""


class Incoming(NamedTuple):
    """A message and the connection that it must be acknowledged on."""

    message: Message
    link: "Link"
    packet_id: int
    qos: int

    def acknowledge(self) -> None:
        """Tells the broker that the consumer is through; nothing when the connection has gone."""
        self.link.acknowledge(self)


class Link:
    """A connection from `open` until `lost`.

    Args:
        settings: Where the broker is.
        version: `5` or `3.1.1`.
        presence: The will, and the birth that the caller publishes.
        on_message: Called in the event loop for each message; must return at once.
        on_lost: Called in the event loop when the connection has broken, with whether another client took
            the session; a broker tells that in MQTT 5 only.
    """

    def __init__(
        self,
        settings: MqttSettings,
        version: str,
        presence: BirthAndWill | None,
        on_message: Callable[[Incoming], None],
        on_lost: Callable[[bool], None],
    ) -> None:
        self.limits = Limits(max_packet_bytes=268_435_455, max_in_flight=settings.max_in_flight)
        self.is_alive = False
        self._settings = settings
        self._is_v5 = version == "5"
        self._on_message = on_message
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[None] = self._loop.create_future()
        self._pending: dict[int, asyncio.Future[None]] = {}
        self._housekeeping: asyncio.TimerHandle | None = None
        self._socket: socket.socket | None = None  # while the event loop watches it
        self._is_adopted = False
        self.was_taken = False
        self.ended = ""  # why, in the broker's words
        self._is_writing = False
        self._num_events = 0
        self._client = self._new_client(presence)

    async def open(self, answer_within_s: float) -> None:
        """Connects and waits for the broker's answer.

        Raises:
            TransportError: The broker cannot be reached (`Unanswered`: or says nothing).
            BrokerRefused: It answered no (`ProtocolRefused`: to this version of MQTT).
            TlsFailure: The encrypted connection could not be made.
        """
        connecting = self._loop.run_in_executor(None, dial, self._client, self._settings)
        try:
            await asyncio.shield(connecting)
            self._adopt_socket()
            await self._answered(answer_within_s)
        except asyncio.CancelledError:
            await asyncio.wait([connecting])  # the thread cannot be stopped, only outlasted
            connecting.exception()
            self.close()
            raise
        except TimeoutError as error:
            self.close()
            raise Unanswered(
                f"broker {self._settings.place} took the connection, but says nothing; is it an MQTT broker?"
            ) from error
        except TransportError:
            self.close()
            raise
        if self._socket is None:  # the broker's answer and its end came in one read
            self.close()
            raise LinkLost(f"broker {self._settings.place} closed the connection after its answer")
        self.is_alive = True
        self._keep_house()

    async def publish(self, topic: str, payload: bytes, *, retain: bool, expiry_s: int | None) -> None:
        """Publishes at QoS 1 and waits for the acknowledgement.

        Raises:
            LinkLost: The connection broke before it came.
            PublishRefused: The broker takes no such message.
        """
        size = len(payload) + len(topic.encode()) + HEADER_BYTES
        if size > self.limits.max_packet_bytes:
            raise PublishRefused(f"it takes {self.limits.max_packet_bytes:,} bytes in a packet; {SIZE}")
        properties = None
        if self._is_v5 and expiry_s is not None:
            properties = Properties(PacketTypes.PUBLISH)
            properties.MessageExpiryInterval = expiry_s
        self._check_alive()
        info = self._client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        await self._acknowledged(info.mid, f"publishing to {topic}")

    async def subscribe(self, *topic_filters: str) -> None:
        """Subscribes at QoS 1, to all in one packet.

        Raises:
            LinkLost: The connection broke before the answer came.
            BrokerRefused: The broker does not allow one of them.
        """
        if not topic_filters:
            return
        self._check_alive()
        asked: list[Any] = [(one, SubscribeOptions(qos=1) if self._is_v5 else 1) for one in topic_filters]
        _, packet_id = self._client.subscribe(asked)
        await self._acknowledged(packet_id, f"subscribing to {', '.join(topic_filters)}")

    async def unsubscribe(self, topic_filter: str) -> None:
        """Ends a subscription; raises as `subscribe` does."""
        self._check_alive()
        _, packet_id = self._client.unsubscribe(topic_filter)
        await self._acknowledged(packet_id, f"unsubscribing from {topic_filter}")

    def acknowledge(self, incoming: Incoming) -> None:
        """Frees a place in the broker's window towards us."""
        if self.is_alive:
            self._client.ack(incoming.packet_id, incoming.qos)
            self._flush()

    def disconnect(self) -> None:
        """Leaves cleanly: the broker forgets the will and keeps the session."""
        if self.is_alive:
            self._client.disconnect()
            self._client.loop_write()
        self.close()

    def close(self) -> None:
        """Cuts the connection; the broker publishes the will."""
        self._lose("the connection was closed here")
        # paho closes its socket when the client goes; here at once, and whatever state it is in.
        connection, self._socket = self._socket or self._client.socket(), None
        if connection is not None and connection.fileno() >= 0:
            self._forget_socket(connection)
            connection.close()

    def _new_client(self, presence: BirthAndWill | None) -> Client:
        client = new_client(self._settings, presence, is_v5=self._is_v5)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_message = self._received
        client.on_publish = self._published
        client.on_subscribe = self._subscribed
        client.on_unsubscribe = self._subscribed
        client.on_socket_close = self._closed
        return client

    def _adopt_socket(self) -> None:
        connection = self._client.socket()
        if not isinstance(connection, socket.socket):
            raise unanswered(self._settings)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._is_adopted = True
        # From here on packets wait for the event loop; until now they were written at once.
        self._client.on_socket_register_write = lambda *_: self._flush()
        self._loop.add_reader(connection, self._read)
        self._flush()

    async def _answered(self, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                await asyncio.shield(self._answer)
        except TimeoutError:
            if self._socket is None:
                raise
            # amqtt takes MQTT 5's properties for lengths and waits for bytes that never come; at an end of
            # the stream it says no, where a reset would leave a traceback in its log.
            self._socket.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(within_s):
                await asyncio.shield(self._answer)

    def _read(self) -> None:
        """Takes what has come: a round through the event loop costs more than a packet."""
        for _ in range(MAX_READS):
            before = self._num_events
            self._client.loop_read()
            if self._num_events == before:
                break
        self._flush()
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            self._loop.call_soon(self._read)  # decrypted already: the selector does not see it

    def _flush(self) -> None:
        """Has the event loop write what waits, at the end of its turn: what came up in it leaves together."""
        if self._socket is not None and not self._is_writing and self._client.want_write():
            self._is_writing = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._client.loop_write()
        if self._socket is None:
            return
        if self._client.want_write():  # the socket did not take it all at once
            self._loop.add_writer(self._socket, self._write)
        else:
            self._is_writing = False
            self._loop.remove_writer(self._socket)

    def _keep_house(self) -> None:
        if self.is_alive:
            self._client.loop_misc()
            self._flush()
            self._housekeeping = self._loop.call_later(1.0, self._keep_house)

    def _closed(self, client: Client, userdata: object, connection: Any) -> None:
        if self._socket is not None:
            self._forget_socket(connection)

    def _forget_socket(self, connection: Any) -> None:
        self._socket = None
        self._loop.remove_reader(connection)
        self._loop.remove_writer(connection)

    def _connected(
        self,
        client: Client,
        userdata: object,
        flags: object,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if self._answer.done():
            return
        if reason.is_failure:
            self._answer.set_exception(refusal(reason, self._settings))
            return
        most = getattr(properties, "MaximumPacketSize", self.limits.max_packet_bytes)
        window = getattr(properties, "ReceiveMaximum", self.limits.max_in_flight)
        self.limits = Limits(most, min(window, self.limits.max_in_flight))
        self._answer.set_result(None)

    def _disconnected(
        self,
        client: Client,
        userdata: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        is_told = flags.is_disconnect_packet_from_server
        self.was_taken = is_told and reason.value == TAKEN_OVER
        if is_told and reason.is_failure and not self.was_taken:
            self.ended = f"{reason}; {advice(reason)}"
        if self._is_adopted:  # else the connecting thread's own failure, which `open` sees
            self._lose(str(reason))

    def _received(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        self._num_events += 1
        try:
            topic = message.topic
        except UnicodeDecodeError:  # none of ours; kept unacknowledged it would hold a place in the window
            client.ack(message.mid, message.qos)
            return
        received = Message(topic, bytes(message.payload), message.retain)
        self._on_message(Incoming(received, self, message.mid, message.qos))

    def _published(
        self, client: Client, userdata: object, packet_id: int, reason: ReasonCode, properties: object
    ) -> None:
        told = f"{reason}; {advice(reason)}"
        self._settle(packet_id, PublishRefused(told) if reason.is_failure else None)

    def _subscribed(
        self, client: Client, userdata: object, packet_id: int, reasons: list[ReasonCode], properties: object
    ) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        told = f"broker {self._settings.place} refused: {', '.join(refused)}"
        self._settle(packet_id, BrokerRefused(told) if refused else None)

    def _settle(self, packet_id: int, refusal: BrokerRefused | None) -> None:
        self._num_events += 1
        future = self._pending.pop(packet_id, None)
        if future is None or future.done():
            return
        if refusal is None:
            future.set_result(None)
        else:
            future.set_exception(refusal)

    async def _acknowledged(self, packet_id: int | None, what: str) -> None:
        self._flush()
        if packet_id is None:  # paho has no socket any more: whoever tries again must wait for a new link
            self._lose("the socket is gone")
        if not self.is_alive or packet_id is None:  # paho writes at once, and may have found it gone
            raise LinkLost(f"broker {self._settings.place}: {what}: not connected")
        future: asyncio.Future[None] = self._loop.create_future()
        self._pending[packet_id] = future
        try:
            await future
        except PublishRefused:
            raise
        except BrokerRefused as error:
            raise BrokerRefused(f"{error} ({what})") from error
        finally:
            self._pending.pop(packet_id, None)

    def _check_alive(self) -> None:
        if not self.is_alive:
            raise LinkLost(f"broker {self._settings.place}: not connected")

    def _lose(self, reason: str) -> None:
        """Fails what waits for the broker; the owner is told once, and before anyone who waits runs."""
        was_alive, self.is_alive = self.is_alive, False
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        if was_alive:
            self._on_lost(self.was_taken)
        text = f"broker {self._settings.place} closed the connection: {reason}"
        if not self._answer.done():
            self._answer.set_exception(unanswered(self._settings))
            self._answer.exception()  # seen, even when nobody waits for it
        for future in self._pending.values():
            if not future.done():
                future.set_exception(LinkLost(text))
        self._pending.clear()
