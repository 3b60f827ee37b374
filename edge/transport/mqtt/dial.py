"""The opening of an MQTT connection: a paho client, the blocking call, and its failures in one line each."""

import ssl
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge.errors import BrokerRefused, TlsFailure, TransportError
from edge.transport.base import BirthAndWill
from edge.transport.mqtt.joined import JoiningClient
from edge.transport.settings import MqttSettings

MAX_UNREAD = 64  # messages the broker may send ahead of the consumer, where it lets us say so (MQTT 5)
MAX_INCOMING_BYTES = 2 << 20  # of one packet; the broker drops larger ones (MQTT 5)
# CONNACK codes of MQTT 5, section 3.2.2.2.
UNSUPPORTED_PROTOCOL = 0x84
FOR_NOW = frozenset({0x88, 0x89, 0x97, 0x9F})  # server unavailable, busy, quota or connection rate exceeded


class ProtocolRefused(BrokerRefused):
    """The broker does not speak this version of MQTT."""


class Unanswered(TransportError):  # noqa: N818
    """No answer to CONNECT, or the connection closed: as to a version that the broker cannot parse."""


def new_client(settings: MqttSettings, presence: BirthAndWill | None, *, is_v5: bool) -> Client:
    """Makes a client that acknowledges by hand, does not reconnect, and keeps its session where it may last.

    Raises:
        TlsFailure: A certificate file cannot be used.
    """
    client = JoiningClient(
        CallbackAPIVersion.VERSION2,
        client_id=settings.client_id,
        clean_session=None if is_v5 else settings.session_expiry_s == 0,
        protocol=MQTTProtocolVersion.MQTTv5 if is_v5 else MQTTProtocolVersion.MQTTv311,
        reconnect_on_failure=False,
        manual_ack=True,
    )
    client.max_inflight_messages_set(0)  # the transport's window bounds them
    client.connect_timeout = settings.connect_timeout_s
    client.username_pw_set(settings.username, settings.password)
    if presence is not None:
        client.will_set(presence.topic, presence.will, qos=1, retain=True)
    context = settings.tls_context()
    if context is not None:
        client.tls_set_context(context)
    return client


def dial(client: Client, settings: MqttSettings) -> None:
    """Connects and sends CONNECT; blocks on TCP and TLS, so it belongs in a thread.

    Raises:
        TransportError: The broker cannot be reached.
        TlsFailure: The encrypted connection could not be made.
    """
    options: dict[str, Any] = {}
    if client.protocol == MQTTProtocolVersion.MQTTv5:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = settings.session_expiry_s
        properties.ReceiveMaximum = MAX_UNREAD
        properties.MaximumPacketSize = MAX_INCOMING_BYTES
        options = {"clean_start": settings.session_expiry_s == 0, "properties": properties}
    try:
        client.connect(settings.host, settings.port, settings.keepalive_s, **options)
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that no DNS can hold
        raise _failure(error, settings) from error


def refusal(reason: ReasonCode, settings: MqttSettings) -> TransportError:
    """Returns what a CONNACK that says no means; paho gives those of MQTT 3.1.1 the codes of 5."""
    text = f"broker {settings.place} refused client {settings.client_id}: {reason}"
    if reason.value == UNSUPPORTED_PROTOCOL:
        return ProtocolRefused(text)
    if reason.value in FOR_NOW:
        return TransportError(text)
    return BrokerRefused(f"{text}; check user name, password and rights")


def unanswered(settings: MqttSettings) -> Unanswered:
    """Returns what an end of the connection instead of a CONNACK may mean."""
    hint = "does it ask for a client certificate" if settings.is_encrypted else "is this its TLS port"
    return Unanswered(f"broker {settings.place} closed the connection without an answer; {hint}?")


def _failure(error: OSError | UnicodeError, settings: MqttSettings) -> TransportError:
    place, reason = f"broker {settings.place}", getattr(error, "strerror", None) or str(error)
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        return TlsFailure(f"{place}: no TLS connection: {reason}; check CA, host name and port")
    if settings.is_encrypted and isinstance(error, ConnectionResetError | BrokenPipeError):
        return TlsFailure(f"{place}: {reason} in the TLS handshake; is this its TLS port?")
    return TransportError(f"{place} cannot be reached: {reason}; is it running there?")
