"""How a watcher reaches the broker."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs

from converters.faults import Fault
from edge.errors import ConfigError
from edge.protocol.messages import Id
from edge.settings import type_faults
from edge.transport.settings import MqttSettings, ProtocolName, from_environment


class WatchConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything `tunefleet watch` can be told; without a fleet it watches all."""

    broker: str
    fleet: Id | None = None
    broker_user: str | None = None
    broker_password_file: str | None = None
    protocol: ProtocolName = "auto"
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None


def read_config(given: Mapping[str, Any]) -> WatchConfig:
    """The settings of a command line, and of the environment below it.

    Raises:
        ConfigError: Naming every fault at once.
    """
    settings = from_environment({name: value for name, value in given.items() if value is not None})
    faults: list[Fault | str] = list(type_faults(settings, WatchConfig))
    if bool(settings.get("tls_cert")) != bool(settings.get("tls_key")):
        faults.append("tls_cert and tls_key belong together; one is missing")
    files = [settings[name] for name in ("tls_ca", "tls_cert", "tls_key") if name in settings]
    faults += [f"{file} does not exist" for file in files if not Path(file).exists()]
    if faults:
        raise ConfigError.of("settings", faults)
    return msgspec.convert(settings, WatchConfig)


def mqtt_settings(config: WatchConfig) -> MqttSettings:
    """How to reach the broker, under a name drawn anew, with a session that ends with the connection.

    Raises:
        ConfigError: The broker's URL is malformed.
    """
    settings = MqttSettings.from_url(
        config.broker,
        f"watch-{secrets.token_hex(8)}",
        user=config.broker_user,
        password_file=config.broker_password_file,
        protocol=config.protocol,
        ca_file=config.tls_ca,
        cert_file=config.tls_cert,
        key_file=config.tls_key,
    )
    return structs.replace(settings, session_expiry_s=0)
