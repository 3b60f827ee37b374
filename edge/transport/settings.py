"""How to reach an MQTT broker.

A password belongs neither on a command line, which every user of a machine can read, nor in a message: it
comes from a file or from the environment, and URLs are told without it.
"""

import math
import os
import re
import secrets
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from msgspec import Struct, structs

from converters.files.content import is_file, read_content
from converters.files.text import decode_text
from edge.choices import ProtocolName
from edge.errors import ConfigError, TlsFailure
from edge.settings import path_faults

ENVIRONMENT = {  # settings to the variables that stand in for them
    "broker": "TUNEFLEET_BROKER",
    "broker_user": "TUNEFLEET_BROKER_USER",
    "broker_password_file": "TUNEFLEET_BROKER_PASSWORD_FILE",
}
_FORM = "expected mqtt://[user:password@]host[:port], or mqtts:// for TLS"
_ESCAPES = "in user and password write @ as %40, : as %3A, / as %2F, or give --broker-password-file"

_SCHEMES = ("mqtt", "mqtts", "http", "https", "tcp", "ssl", "ws", "wss")
_PLACE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:/?#\[\]]+)(:[0-9]+)?/?")


class MqttSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the broker is and how to speak to it.

    Attributes:
        client_id: Stable over restarts: the broker keeps the session under it.
        protocol: `auto` speaks MQTT 5, and 3.1.1 with a broker that refuses it.
        ca_file: Certificates to trust (PEM) instead of the system's.
        cert_file: This client's own certificate (PEM), with `key_file`, where the broker asks for one.
        session_expiry_s: How long the broker keeps the session without a connection (MQTT 5); with 0 it keeps
            none, in 3.1.1 neither.
        keepalive_s: A dead connection is found out within twice this time.
        connect_timeout_s: For each of TCP, TLS handshake and the broker's answer.
        wait_for_broker_s: How long the first connection is tried again while the broker cannot be reached.
        max_in_flight: Publishes under way at a time, if the broker takes as many.
    """

    host: str
    client_id: str
    port: int = 1883
    username: str | None = None
    password: str | None = None
    protocol: ProtocolName = "auto"
    is_encrypted: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    session_expiry_s: int = 86400
    keepalive_s: int = 30
    connect_timeout_s: float = 10.0
    wait_for_broker_s: float = 0.0
    max_in_flight: int = 16

    @classmethod
    def from_url(
        cls,
        url: str,
        client_id: str,
        *,
        user: str | None = None,
        password_file: str | None = None,
        **others: Any,
    ) -> "MqttSettings":
        """Reads settings from `mqtt://user:password@host:1883`, or `mqtts://…` for TLS; %-escapes are undone.

        Args:
            url: The broker's.
            client_id: As the attribute.
            user: Instead of the URL's.
            password_file: Its first line goes instead of the URL's password.
            others: Attributes that no URL tells.

        Raises:
            ConfigError: If `url` is not of that form, or the password's file holds none.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # its text may hold a part of the password
            raise ConfigError(f"broker {without_password(url)}: {_FORM}; {_ESCAPES}") from None
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path not in ("", "/"):
            raise ConfigError(f"broker {without_password(url)}: {_FORM}")
        username = user or (unquote(parts.username) if parts.username else None)
        if password_file and not username:
            raise ConfigError(
                f"broker {without_password(url)}: there is a password file and no user; "
                "give --broker-user, or mqtt://USER@host"
            )
        password = unquote(parts.password) if parts.password else None
        return cls(
            host=parts.hostname,
            port=port or (8883 if parts.scheme == "mqtts" else 1883),
            client_id=client_id,
            username=username,
            password=_read_password(password_file) if password_file else password,
            is_encrypted=parts.scheme == "mqtts",
            **others,
        )

    @property
    def place(self) -> str:
        """Tells host and port, for messages; never the password."""
        return f"{self.host}:{self.port}"

    def aside(self) -> "MqttSettings":
        """Returns settings for a connection beside the client's own, of which the broker keeps nothing."""
        return structs.replace(self, client_id=f"{self.client_id}-{secrets.token_hex(4)}", session_expiry_s=0)

    def tls_context(self) -> ssl.SSLContext | None:
        """Builds what the broker's certificate is checked with; None without TLS.

        Raises:
            TlsFailure: A certificate or key file is missing or unreadable.
        """
        if not self.is_encrypted:
            return None
        files = [file for file in (self.ca_file, self.cert_file, self.key_file) if file]
        missing = [file for file in files if not is_file(Path(file))]
        if missing:
            raise TlsFailure(f"TLS for {self.place}: no such file: {', '.join(missing)}")
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (ssl.SSLError, OSError) as error:
            raise TlsFailure(
                f"TLS for {self.place}: {', '.join(files)}: {error}; expected PEM files"
            ) from error
        return context


class BrokerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a program reaches its broker: what the settings of all programs share.

    Attributes:
        broker: `mqtt://[user[:password]@]host[:port]`, or `mqtts://` for TLS; else `TUNEFLEET_BROKER` of the
            environment.
        broker_user: Instead of the URL's; else `TUNEFLEET_BROKER_USER`, where the URL has none.
        broker_password_file: Its first line is the password; else `TUNEFLEET_BROKER_PASSWORD_FILE`, likewise.
        protocol: MQTT version: 3.1.1, 5, or auto, the newest the broker takes.
        waits_for_broker: A broker that cannot be reached at the start is tried again, for ever.
        tls_ca: Certificates to check the broker against, instead of the system's.
        tls_cert: This program's certificate, where the broker asks for one.
        tls_key: Private key of `tls_cert`.
    """

    broker: str
    broker_user: str | None = None
    broker_password_file: str | None = None
    protocol: ProtocolName = "auto"
    waits_for_broker: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    def mqtt_settings(self, client_id: str) -> MqttSettings:
        """Tells how the client of that id reaches the broker.

        Raises:
            ConfigError: The broker's URL is malformed, or the password's file holds none.
        """
        return MqttSettings.from_url(
            self.broker,
            client_id,
            user=self.broker_user,
            password_file=self.broker_password_file,
            protocol=self.protocol,
            ca_file=self.tls_ca,
            cert_file=self.tls_cert,
            key_file=self.tls_key,
            wait_for_broker_s=math.inf if self.waits_for_broker else 0.0,
        )


def tls_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    """Finds what is wrong with the TLS settings of a `BrokerConfig`."""
    yield from path_faults(settings, "tls_ca", "tls_cert", "tls_key")
    if bool(settings.get("tls_cert")) != bool(settings.get("tls_key")):
        yield "tls_cert and tls_key belong together; one is missing"


def from_environment(settings: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Fills in from `TUNEFLEET_BROKER` and the like what neither command line nor file says of the broker.

    Args:
        settings: Broker, user and password file by the names of a device's or coordinator's configuration.
        environ: The environment.
    """
    found = {name: environ[variable] for name, variable in ENVIRONMENT.items() if environ.get(variable)}
    if "@" in str(settings.get("broker", "")):  # it has its own
        found = {}
    return found | dict(settings)


def has_password(url: str) -> bool:
    """Tells whether a URL holds a password, be the rest of it well-formed or not."""
    return ":" in url.partition("://")[2].rpartition("@")[0]


def without_password(url: str) -> str:
    """Shows a URL, also a malformed one: scheme, host and port, never user or password."""
    scheme, mark, rest = url.partition("://")
    if scheme not in _SCHEMES:
        scheme, mark, rest = "", "", url
    user, _, place = rest.rpartition("@")
    shown = place if _PLACE.fullmatch(place) else f"{re.split('[:/?#]', place)[0]}…"
    return f"{scheme}{mark}{'…@' if user else ''}{shown}"


def _read_password(file: str) -> str:

    def told(why: str) -> ConfigError:
        return ConfigError(f"{file}: the broker's password {why}")

    content = read_content(Path(file), told, takes_pipes=True)
    lines = decode_text(content, told).splitlines()
    if not lines or not lines[0]:
        raise ConfigError(f"{file}: its first line is empty, expected the broker's password")
    return lines[0]
