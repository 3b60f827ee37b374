"""Full checkpoints: everything that decides how training goes on, in one safetensors file.

Adapter and optimizer are the backend's snapshot; the position in the data is the number of steps, since
every step takes one batch. Written atomically, so a killed worker leaves the old checkpoint or the new one.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from converters.adapter import LoraAdapter
from converters.files.content import is_file, is_there
from converters.formats.canonical import dump_adapter
from edge.backends.contract import ModelCard, Snapshot
from edge.choices import Precision
from edge.errors import StateError
from edge.storage.disk import disk_error, write_file
from edge.training.plan import Plan
from edge.training.requests import Validation

FORMAT = 1
FILE = "checkpoint.safetensors"
METADATA = "tunefleet"
LOSSES = "losses"
PREFIX = "model."
_NOT_IDENTITY = ("micro_batch_tokens", "checkpoint_every_s")  # they do not change what is computed
_LATER = ("example_clip_norm", "example_noise")  # of no identity where they are 0: older checkpoints go on


class Tally(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What has been done so far."""

    num_steps: int = 0
    seconds: float = 0.0
    num_examples: int = 0
    num_tokens: int = 0
    micro_batch_tokens: int = 0


class Checkpoint(NamedTuple):
    """A point between two steps."""

    tally: Tally
    losses: list[float]  # of every step so far
    model: Snapshot
    precision: Precision | None = None  # trained in; None: an older file, which does not tell
    validations: tuple[Validation, ...] = ()
    valid: str = ""  # what they were scored on: `Dataset.digest`


class _Header(Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    task: str
    tensors: str  # sha256 of names, types, shapes and bytes
    tally: Tally
    precision: Precision | None = None
    validations: tuple[Validation, ...] = ()
    valid: str = ""


def training_digest(adapter: LoraAdapter, data_digest: str, plan: Plan, card: ModelCard) -> str:
    """Hashes what must be the same for a checkpoint to be continued, as sha256 hex."""
    settings = {
        name: value
        for name, value in msgspec.structs.asdict(plan).items()
        if name not in _NOT_IDENTITY and (value or name not in _LATER)
    }
    model = [card.backend, card.vocab_size, card.num_parameters, sorted(card.modules.items())]
    digest = hashlib.sha256(dump_adapter(adapter))
    digest.update(msgspec.json.encode([data_digest, settings, model]))
    return digest.hexdigest()


def save_checkpoint(checkpoint: Checkpoint, folder: Path, task: str) -> None:
    """Replaces the folder's checkpoint.

    Raises:
        DiskRefused: The old checkpoint is still there.
    """
    tensors: Snapshot = {PREFIX + name: array for name, array in checkpoint.model.items()}
    tensors[LOSSES] = np.array(checkpoint.losses, np.float64)
    header = _Header(
        FORMAT,
        task,
        _digest(tensors),
        checkpoint.tally,
        checkpoint.precision,
        checkpoint.validations,
        checkpoint.valid,
    )
    content = save(tensors, {METADATA: msgspec.json.encode(header).decode()})
    write_file(folder / FILE, content)


def load_checkpoint(folder: Path, task: str) -> Checkpoint | None:
    """Loads the folder's checkpoint and checks it; None where there is none.

    Raises:
        StateError: It is damaged, of a newer version, or of another task.
        DiskRefused: It cannot be read now.
    """
    path = folder / FILE
    if not is_there(path):
        return None
    if not is_file(path):  # a pipe would be waited for
        raise StateError(f"{path}: is no file; remove it to begin anew")
    header, tensors = _read(path)
    if header.task != task:
        raise StateError(
            f"{path}: belongs to another task: base, adapter, data or plan differ; "
            "restore them, or remove the file to begin anew"
        )
    losses = tensors.pop(LOSSES).tolist()
    model = {name.removeprefix(PREFIX): array for name, array in tensors.items()}
    return Checkpoint(header.tally, losses, model, header.precision, header.validations, header.valid)


def checkpoint_precision(folder: Path) -> Precision | None:
    """Reads what the folder's checkpoint was trained in; None if there is none, or none that can be read."""
    if not is_file(folder / FILE):
        return None
    try:
        with safe_open(folder / FILE, "numpy") as file:
            return msgspec.json.decode((file.metadata() or {})[METADATA], type=_Header).precision
    except (OSError, SafetensorError, KeyError, msgspec.MsgspecError):
        return None  # `load_checkpoint` says what is wrong with it


class _Format(Struct):
    format: int


def _read(path: Path) -> tuple[_Header, Snapshot]:
    try:
        with safe_open(path, "numpy") as file:
            metadata = (file.metadata() or {})[METADATA]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        version = msgspec.json.decode(metadata, type=_Format).format
        if version != FORMAT:
            raise StateError(
                f"{path}: has format {version}, expected {FORMAT}; use the tunefleet that wrote it"
            )
        header = msgspec.json.decode(metadata, type=_Header)
    except OSError as error:
        raise disk_error("reading", path, error) from error
    except (SafetensorError, KeyError, msgspec.MsgspecError) as error:
        raise StateError(f"{path}: is damaged ({error}); remove it to begin anew") from error
    if LOSSES not in tensors or _digest(tensors) != header.tensors:
        raise StateError(f"{path}: is damaged (its checksum differs); remove it to begin anew")
    return header, tensors


def _digest(tensors: Snapshot) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()
