"""A device's settings: defaults stand here and nowhere else; TOML and the command line override them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from converters.bases.name import is_hub_name
from converters.files.content import is_there
from edge.choices import CHECKPOINT_EVERY_S, BackendName, Precision
from edge.errors import ConfigError
from edge.privacy.terms import Wishes
from edge.protocol.messages import Count, Id, Seconds, Sha256
from edge.settings import checked, laid_over, path_faults, read_toml
from edge.training.data.source import DataSource
from edge.transport.settings import BrokerConfig, MqttSettings, from_environment, tls_faults

Positive = Annotated[int, Meta(ge=1)]


class DeviceConfig(BrokerConfig, frozen=True, kw_only=True):
    """Everything `tunefleet join` can be told, beside how the broker is reached.

    Attributes:
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
        max_download_bytes: Of one version's adapter; a fleet with a larger one is not followed.
        max_tasks: The client ends after this many tasks are receipted; 0 goes on for ever.
        privacy: The least privacy that this device trains for, and what it may spend.
        coordinator_key: The coordinator's public key; by default the first one seen is pinned.
    """

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
    checkpoint_every_s: Seconds = CHECKPOINT_EVERY_S
    patience_s: Annotated[float, Meta(gt=0)] = 10.0
    max_pending: Positive = 2
    max_download_bytes: Positive = 1 << 30
    max_tasks: Count = 0
    coordinator_key: Sha256 | None = None
    privacy: Wishes = Wishes()


def read_config(path: Path | None, overrides: Mapping[str, Any]) -> DeviceConfig:
    """Reads the settings of a TOML file, where there is one, with `overrides` above them.

    Args:
        path: TOML with the fields of `DeviceConfig`; `data` is a table, or a path.
        overrides: Field to value; None leaves the file's. `data` is merged field by field.

    Raises:
        ConfigError: Naming every fault at once.
    """
    settings = read_toml(path) if path else {}
    if isinstance(settings.get("data"), str):
        settings["data"] = {"path": settings["data"]}
    settings = from_environment(laid_over(settings, overrides, DeviceConfig))
    return checked(DeviceConfig, settings, path, _path_faults(settings), _broker_faults)


def mqtt_settings(config: DeviceConfig, alias: str) -> MqttSettings:
    """Tells how to reach the broker; the client id is the device's own and stays the same.

    Args:
        config: Its settings.
        alias: Of its key (`Signer.alias`): nobody else can tell it, so nobody throws this device out.

    Raises:
        ConfigError: The broker's URL is malformed.
    """
    return config.mqtt_settings(f"{config.fleet}-{config.device_id}-{alias}")


def _path_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    if not is_hub_name(str(settings.get("base"))):
        yield from path_faults(settings, "base")
    data = settings.get("data", {})
    path = data.get("path") if isinstance(data, dict) else None
    if isinstance(path, str) and not is_there(Path(path)):
        yield f"data.path is {path!r}, which is not a file or folder"
    yield from tls_faults(settings)


def _broker_faults(config: DeviceConfig) -> Iterator[str]:
    try:
        mqtt_settings(config, "")
    except ConfigError as error:
        yield str(error)
