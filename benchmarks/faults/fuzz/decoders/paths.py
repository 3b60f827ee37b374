"""Paths that are no file, or none of the kind that was hoped for: folders, pipes, loops, impossible names."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from benchmarks.faults.fuzz.target import Target
from converters.bases.read import read_base
from converters.errors import TunefleetError
from converters.formats.load import load_any, read_about
from converters.gguf_export.tokenizer import read_vocabulary
from coordinator.config import read_config as read_coordinator_config
from coordinator.ledger.state import open_ledger
from edge.backends import base_kind
from edge.backends.tokenizer import context_tokens
from edge.backends.toy import ByteTokenizer, load
from edge.device.config import read_config as read_device_config
from edge.storage.identity import read_identity
from edge.training.checkpoint import load_checkpoint
from edge.training.data.dataset import load_dataset
from edge.training.data.readers.folders import stamp
from edge.training.data.source import DataSource
from edge.training.local_run.run import trained_asking
from edge.transport.settings import MqttSettings

FILES = (
    "config.json",
    "model.safetensors",
    "model.gguf",
    "adapter_config.json",
    "adapters.safetensors",
    "tokenizer.json",
    "journal.sqlite",
    "identity.key",
    "checkpoint.safetensors",
    "train.jsonl",
    "dataset_dict.json",
    "toy.json",
    "metrics.json",
)


def targets(root: Path) -> Iterator[Target]:
    """Lists the readers of paths; what is there lies below `root`."""
    places = root / "places"
    names = [name.encode() for name in _make(places)]
    names += [
        b"",
        b"\0",
        b"a\0b",
        b"x" * 300,
        b"x" * 5000,
        b"\xff",
        b"nowhere",
        b"someone/model",
        b"a" * 4096,
    ]
    for name, read in _READERS.items():
        yield Target(f"path/{name}", "bytes", names, partial(_read, places, read), 1)


def _make(places: Path) -> Iterator[str]:
    """Makes one of each, by itself and inside a folder under every name that is looked for."""
    places.mkdir()
    for kind in ("folder", "pipe", "loop", "dangling", "socket", "empty", "junk", "device"):
        for suffix in ("", ".gguf", ".jsonl", ".csv", ".parquet", ".safetensors", ".toml"):
            _put(kind, places / f"{kind}{suffix}")
            yield f"{kind}{suffix}"
        inside = places / f"in-{kind}"
        inside.mkdir()
        for name in FILES:
            _put(kind, inside / name)
        yield inside.name


def _put(kind: str, path: Path) -> None:
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "dangling":
            path.symlink_to("nowhere")
        case "device":
            path.symlink_to("/dev/null")
        case "empty":
            path.write_bytes(b"")
        case "junk":
            path.write_bytes(b"\x00\xff junk" * 100)
        case "socket" if len(str(path)) < 100:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(path))


def _read(places: Path, read: Callable[[Path], object], name: bytes) -> None:
    inside = os.fsdecode(name).replace("..", "").lstrip("/")  # nothing is made elsewhere
    read(Path(f"{places}/{inside}"))


def _read_data(path: Path) -> None:
    stamp(path)
    load_dataset(DataSource(path=str(path)), ByteTokenizer(), seq_tokens=16)


def _read_settings(path: Path) -> None:
    if not _is_waited_for(path):
        with suppress(TunefleetError):
            read_device_config(path, {})
        with suppress(TunefleetError):
            read_coordinator_config(path, {})
    given = {"base": str(path), "tls_ca": str(path), "adapter": str(path), "eval_data": str(path)}
    with suppress(TunefleetError):
        read_coordinator_config(None, {"fleet": "home", "broker": "mqtt://a", "state": "s", **given})
    read_device_config(None, {"data": {"path": str(path)}, "base": str(path)})


def _read_state(path: Path) -> None:
    if "\0" in str(path):  # settings that name such a folder are refused
        return
    for look in (lambda: read_identity(path, "restore it"), lambda: load_checkpoint(path, "task")):
        with suppress(TunefleetError):
            look()
    trained_asking(path)
    with open_ledger(path) as (journal, _):
        journal.devices()


def _read_base(path: Path) -> None:
    for look in (base_kind, context_tokens, load):
        with suppress(TunefleetError):
            look(path)
    with suppress(TunefleetError):
        read_vocabulary(path, 16)
    read_base(path)


def _read_adapter(path: Path) -> None:
    with suppress(TunefleetError):
        read_about(path)
    load_any(path)


def _read_password(path: Path) -> None:
    if _is_waited_for(path):
        return
    MqttSettings.from_url("mqtt://a@b", "client", password_file=str(path))


def _is_waited_for(path: Path) -> bool:
    """Tells whether it is what a shell gives for `<(…)`, which settings and passwords may come from."""
    try:
        return path.is_fifo()
    except OSError:
        return False


_READERS: dict[str, Callable[[Path], object]] = {
    "base": _read_base,
    "adapter": _read_adapter,
    "data": _read_data,
    "settings": _read_settings,
    "state": _read_state,
    "password": _read_password,
}
