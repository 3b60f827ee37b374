"""Settings: a device's and a coordinator's TOML, the broker's URL, a password file."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.faults.fuzz.decoders.folder import Replaced
from benchmarks.faults.fuzz.target import Target
from coordinator import config as coordinator
from edge.device import config as device
from edge.transport.settings import MqttSettings, without_password

DEVICE = """\
fleet = "home"
device_id = "lamp"
broker = "mqtt://localhost:1883"
base = "/"
state = "state"
max_rank = 8
slowdown = 1.5
coordinator_key = "{key}"

[data]
path = "/"
train_on_prompt = true
"""
COORDINATOR = """\
fleet = "home"
broker = "mqtt://localhost"
base = "/"
state = "state"
ranks = [8, 4]
scale = 2.0
strategy = "fedbuff"
enrolment = "closed"
max_norm = 10.0

[stages]
optimizer = "fedavgm"
order = ["freshness", {{kind = "clip", ratio = 3.0}}]

[recipe]
steps = 20
lr = 0.001

[devices]
lamp = "{key}"
"""


def targets(root: Path) -> Iterator[Target]:
    """Lists the readers of settings; files lie below `root`."""
    folder = root / "settings"
    folder.mkdir()
    for name, text, read in (
        ("device.toml", DEVICE, device.read_config),
        ("coordinator.toml", COORDINATOR, coordinator.read_config),
    ):
        seed = text.format(key="a" * 64).encode()
        yield Target(
            f"settings/{name}", "toml", [seed], Replaced(folder, name, partial(_read, read, name)), 6
        )
    yield Target("settings/url", "bytes", [b"mqtts://user:p%40ss@[::1]:8883/"], _url, 20)
    decode = Replaced(folder, "password", _password)
    yield Target("settings/password", "bytes", [b"secret\nmore\n"], decode, 1)


def _read(read, name: str, folder: Path) -> None:  # type: ignore[no-untyped-def]
    read(folder / name, {})


def _url(content: bytes) -> None:
    text = content.decode("utf-8", "surrogateescape")
    without_password(text)
    MqttSettings.from_url(text, "client")


def _password(folder: Path) -> None:
    MqttSettings.from_url("mqtt://a@b", "client", password_file=str(folder / "password"))
