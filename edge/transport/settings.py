"""How to reach an MQTT broker."""

import ssl
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import msgspec

from edge.errors import ConfigError, TlsFailure

ProtocolName = Literal["auto", "5", "3.1.1"]


class MqttSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the broker is and how to speak to it.

    Attributes:
        client_id: Stable over restarts: the broker keeps the session under it.
        protocol: `auto` speaks MQTT 5, and 3.1.1 with a broker that refuses it.
        ca_file: Certificates to trust (PEM) instead of the system's.
        cert_file: This client's own certificate (PEM), with `key_file`, where the broker asks for one.
        session_expiry_s: How long the broker keeps the session without a connection (MQTT 5).
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
        protocol: ProtocolName = "auto",
        ca_file: str | None = None,
        cert_file: str | None = None,
        key_file: str | None = None,
        wait_for_broker_s: float = 0.0,
    ) -> "MqttSettings":
        """Settings from `mqtt://user:password@host:1883`, or `mqtts://…` for TLS; %-escapes are undone.

        Raises:
            ConfigError: If `url` is not of that form.
        """
        parts = urlsplit(url)
        form = "expected mqtt://[user:password@]host[:port], or mqtts:// for TLS"
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"broker {_without_password(url)}: {error}; {form}") from error
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path not in ("", "/"):
            raise ConfigError(f"broker {_without_password(url)}: {form}")
        return cls(
            host=parts.hostname,
            port=port or (8883 if parts.scheme == "mqtts" else 1883),
            client_id=client_id,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            protocol=protocol,
            is_encrypted=parts.scheme == "mqtts",
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            wait_for_broker_s=wait_for_broker_s,
        )

    @property
    def place(self) -> str:
        """Host and port, for messages; never the password."""
        return f"{self.host}:{self.port}"

    def tls_context(self) -> ssl.SSLContext | None:
        """What the broker's certificate is checked with; None without TLS.

        Raises:
            TlsFailure: A certificate or key file is missing or unreadable.
        """
        if not self.is_encrypted:
            return None
        files = [file for file in (self.ca_file, self.cert_file, self.key_file) if file]
        missing = [file for file in files if not Path(file).is_file()]
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


def _without_password(url: str) -> str:
    return url if "@" not in url else f"{url.split('://')[0]}://…@{url.rsplit('@', 1)[1]}"
