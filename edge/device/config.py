"""A device's settings: defaults stand here and nowhere else; TOML and the command line override them."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, structs

from converters.bases.hub import is_hub_name
from converters.faults import Fault
from edge.backends import BackendName
from edge.backends.contract import Precision
from edge.errors import ConfigError
from edge.protocol.messages import Count, Id, Seconds, Sha256
from edge.settings import read_toml, type_faults
from edge.training.data.source import DataSource
from edge.transport.settings import MqttSettings, ProtocolName, from_environment

Positive = Annotated[int, Meta(ge=1)]


class DeviceConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything `tunefleet join` can be told.

    Attributes:
        broker: `mqtt://[user[:password]@]host[:port]`, or `mqtts://` for TLS; else `TUNEFLEET_BROKER` of the
            environment.
        fleet: The fleet's name.
        base: Folder or GGUF file of the base model, or its name on the hub.
        fingerprint: Of the base model; believed of a quantised one instead of a proof by the fleet's sample.
        data: What to train on.
        device_id: This device's name in the fleet.
        state: Folder of this client alone.
        backend: Trains; `auto` chooses by what the base is, then by the machine.
        precision: Of the forward and backward pass; `auto` is what trains fastest, by trying.
        max_rank: The largest rank this device trains; it takes the largest tier that fits.
        slowdown: Every step takes this many times as long, to play a slower device.
        micro_batch_tokens: Tokens computed at a time; 0 is the recipe's whole step.
        checkpoint_every_s: Seconds between full checkpoints of a task.
        patience_s: Without progress for this long, a request is made again.
        max_pending: Updates that may wait for their receipt before another task begins.
        max_tasks: The client ends after this many tasks are receipted; 0 goes on for ever.
        coordinator_key: The coordinator's public key; by default the first one seen is pinned.
        broker_user: Instead of the URL's; else `TUNEFLEET_BROKER_USER`, where the URL has none.
        broker_password_file: Its first line is the password; else `TUNEFLEET_BROKER_PASSWORD_FILE`, likewise.
        protocol: MQTT version: 3.1.1, 5, or auto, the newest the broker takes.
        waits_for_broker: A broker that cannot be reached at the start is waited for.
        tls_ca: Certificates to check the broker against, instead of the system's.
        tls_cert: This device's certificate, where the broker asks for one.
        tls_key: Private key of `tls_cert`.
    """

    broker: str
    fleet: Id
    base: str
    data: DataSource
    device_id: Id
    state: str
    fingerprint: Sha256 | None = None
    backend: BackendName = "auto"
    precision: Precision = "auto"
    max_rank: Positive = 64
    slowdown: Annotated[float, Meta(ge=1)] = 1.0
    micro_batch_tokens: Count = 0
    checkpoint_every_s: Seconds = 60.0
    patience_s: Annotated[float, Meta(gt=0)] = 10.0
    max_pending: Positive = 2
    max_tasks: Count = 0
    coordinator_key: Sha256 | None = None
    broker_user: str | None = None
    broker_password_file: str | None = None
    protocol: ProtocolName = "auto"
    waits_for_broker: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None


def read_config(path: Path | None, overrides: Mapping[str, Any]) -> DeviceConfig:
    """The settings of a TOML file, where there is one, with `overrides` above them.

    Args:
        path: TOML with the fields of `DeviceConfig`; `data` is a table, or a path.
        overrides: Field to value; None leaves the file's. `data` is merged field by field.

    Raises:
        ConfigError: Naming every fault at once.
    """
    settings = read_toml(path) if path else {}
    given = {name: value for name, value in overrides.items() if value is not None}
    data = {**_table(settings.get("data", {})), **given.pop("data", {})}
    settings |= given
    if data:
        settings["data"] = data
    settings = from_environment(settings)
    faults: list[Fault | str] = [*type_faults(settings, DeviceConfig), *_path_faults(settings)]
    if not faults:
        config = msgspec.convert(settings, DeviceConfig)
        faults = list(_broker_faults(config))
    if faults:
        raise ConfigError.of(str(path or "settings"), faults)
    return config


def mqtt_settings(config: DeviceConfig) -> MqttSettings:
    """How to reach the broker; the client id is the device's own and stays the same.

    Raises:
        ConfigError: The broker's URL is malformed.
    """
    return MqttSettings.from_url(
        config.broker,
        f"{config.fleet}-device-{config.device_id}",
        user=config.broker_user,
        password_file=config.broker_password_file,
        protocol=config.protocol,
        ca_file=config.tls_ca,
        cert_file=config.tls_cert,
        key_file=config.tls_key,
        wait_for_broker_s=math.inf if config.waits_for_broker else 0.0,
    )


def config_table(config: DeviceConfig) -> dict[str, Any]:
    """What a TOML file would hold; settings that are None are left out."""
    table: dict[str, Any] = {
        name: value for name, value in structs.asdict(config).items() if value is not None and name != "data"
    }
    source = structs.asdict(config.data)
    return {**table, "data": {name: value for name, value in source.items() if value is not None}}


def _table(data: Any) -> dict[str, Any]:
    return dict(data) if isinstance(data, dict) else {"path": data}


def _path_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    for name in ("base", "tls_ca", "tls_cert", "tls_key"):
        value = settings.get(name)
        if (
            isinstance(value, str)
            and not Path(value).exists()
            and not (name == "base" and is_hub_name(value))
        ):
            yield f"{name} is {value!r}, which does not exist"
    path = _table(settings.get("data", {})).get("path")
    if isinstance(path, str) and not Path(path).exists():
        yield f"data.path is {path!r}, which is not a file or folder"
    if bool(settings.get("tls_cert")) != bool(settings.get("tls_key")):
        yield "tls_cert and tls_key belong together; one is missing"


def _broker_faults(config: DeviceConfig) -> Iterator[str]:
    try:
        mqtt_settings(config)
    except ConfigError as error:
        yield str(error)
