"""How a watcher reaches the broker."""

import secrets
from collections.abc import Mapping
from typing import Any

from msgspec import structs

from edge.protocol.messages import Id
from edge.settings import checked
from edge.transport.settings import BrokerConfig, MqttSettings, from_environment, tls_faults


class WatchConfig(BrokerConfig, frozen=True, kw_only=True):
    """Everything `tunefleet watch` can be told; without a fleet it watches all."""

    fleet: Id | None = None


def read_config(given: Mapping[str, Any]) -> WatchConfig:
    """Reads the settings of a command line, and of the environment below it.

    Raises:
        ConfigError: Naming every fault at once.
    """
    settings = from_environment({name: value for name, value in given.items() if value is not None})
    return checked(WatchConfig, settings, faults=tls_faults(settings))


def mqtt_settings(config: WatchConfig) -> MqttSettings:
    """Tells how to reach the broker, under a name drawn anew, with a session that ends with the connection.

    Raises:
        ConfigError: The broker's URL is malformed.
    """
    return structs.replace(config.mqtt_settings(f"watch-{secrets.token_hex(8)}"), session_expiry_s=0)
