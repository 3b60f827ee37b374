"""What a device remembers, in one folder that belongs to one client of one fleet.

    state.json           this file's `Memory`: fleet, base model, pinned coordinator, the task under way
    identity.key         the device's private key, readable by its owner only
    lock                 held while a client runs
    versions/            adapters that were downloaded, by their sha256, and parts of the one under way
    task/                the worker's folder for the task under way: checkpoints, result
    spool/               updates without a receipt (`edge.storage.spool`)
    residual.safetensors what the encoding of accepted updates left over
    personal.safetensors the last trained adapter, where the fleet lets its devices keep their own b
    sketch.part          the sample of the base model on its way here (`edge.device.learning.proof`)

Every write is atomic, so a client that is killed at any point finds the state before or after it.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Struct

from edge.device.config import DeviceConfig
from edge.device.own_base import base_files, base_fingerprint
from edge.device.task import Task
from edge.errors import StateError
from edge.protocol.signing import Signer, Stamp
from edge.storage.disk import claim_folder, room_for, write_file
from edge.storage.identity import read_identity
from edge.storage.wire_1 import renew_manifest

VERSIONS = "versions"
FORMAT = 3  # 1 knew no epochs, 2 no signed sessions; their folders are taken up


class Memory(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Content of `state.json`."""

    format: int = FORMAT
    fleet: str
    device_id: str
    base: str | None  # fingerprint; None until the model is proved to be the fleet's
    base_files: str = ""  # the files that it was proved of; empty where the fingerprint is their own
    coordinator_key: str | None = None  # pinned at first sight
    task: Task | None = None
    epoch: int = 0  # of the coordinator's latest session; what is signed by an earlier one does not count
    newest: int = -1  # version seen in it
    version: int = -1  # the last version trained on
    sha256: str = ""  # of its blob: after a restore of the coordinator's state its number may name another
    session: int = 0  # the epoch that it was announced in; within one its number tells which it is
    attempts: int = 0  # tasks finished on it
    seq: int = 0  # the latest in the coordinator's journal of this device's verdicts
    seq_epoch: int = 0  # of the session that told it
    heard: dict[str, Stamp] = {}  # the coordinator's latest stamp on each of its topics
    own_epoch: int = 0  # of this device's own latest session: what it signs is later than all before
    tokens_per_s: float | None = None  # measured by the last task
    micro_batch_tokens: int = 0  # what memory allowed in the last task; 0 is all at once


def fresh_memory(config: DeviceConfig) -> Memory:
    """Returns what a new state folder of this device remembers.

    Raises:
        BaseModelError: As `base_fingerprint`.
    """
    base = Path(config.base)
    fingerprint = base_fingerprint(base, config.fingerprint)
    return Memory(
        fleet=config.fleet,
        device_id=config.device_id,
        base=fingerprint,
        base_files="" if fingerprint else base_files(base),
        coordinator_key=config.coordinator_key,
    )


def _renewed(content: bytes, versions: Path) -> bytes:
    """Returns an older format's memory as the present one has it: a task's manifest names a root."""
    fields = msgspec.json.decode(content, type=dict[str, Any])
    if task := fields.get("task"):
        manifest = task["manifest"]
        renewed = renew_manifest(manifest, versions / f"{manifest['sha256']}.safetensors")
        fields["task"] = {**task, "manifest": renewed} if renewed else None
    return msgspec.json.encode(fields)


class _Format(Struct):
    format: int = 0


class DeviceState:
    """The state folder of a running client; used as `with DeviceState(…) as state:`.

    Args:
        folder: Made where it is missing.
        fresh: What a new folder remembers; an old one must agree in fleet, device and base.
        clock: Unix time in seconds.

    Attributes:
        signer: Of the session that entering begins, under the device's key, made at first use.

    Raises:
        StateError: On entering: another client runs here, or the folder is another fleet's, device's or base
            model's, of a newer format, or damaged.
        DiskRefused: On entering or any change.
    """

    signer: Signer

    def __init__(self, folder: Path, fresh: Memory, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.folder = folder
        self.memory = fresh
        self.versions = folder / VERSIONS
        self.task = folder / "task"
        self.spool = folder / "spool"
        self.residual = folder / "residual.safetensors"
        self.personal = folder / "personal.safetensors"

    def __enter__(self) -> Self:
        self._lock = claim_folder(self.folder, (self.versions, self.task, self.spool), "client")
        try:
            self._recall()
            self.signer = Signer(self._identity(), self.memory.own_epoch)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def update(self, **changes: Any) -> None:
        """Changes the memory, on the disk first.

        Raises:
            DiskRefused: It is as it was, in memory and on the disk.
        """
        changed = msgspec.structs.replace(self.memory, **changes)
        content = msgspec.json.format(msgspec.json.encode(changed), indent=2)
        write_file(self.folder / "state.json", content + b"\n")
        self.memory = changed

    def task_folder(self, task: Task) -> Path:
        """Returns the worker's folder for `task`; those of other tasks are removed."""
        manifest = task.manifest
        session = f"-{manifest.epoch}" if manifest.epoch else ""
        wanted = self.task / f"{manifest.version}-{task.attempt}-{manifest.tier}{session}"
        with room_for("the task", self.task):
            for path in self.task.iterdir():
                if path != wanted:
                    shutil.rmtree(path)
            wanted.mkdir(exist_ok=True)
        return wanted

    def _identity(self) -> bytes:
        return read_identity(self.folder, "restore it, or join as a new device")

    def _recall(self) -> None:
        with room_for("tidying up", self.folder):
            for leftover in self.folder.glob(".*.partial"):  # of a client that was killed while writing
                leftover.unlink()
        path = self.folder / "state.json"
        if path.exists():
            self.memory = _agreed(path, self.memory)
        self.update(own_epoch=max(int(self._clock() * 1000), self.memory.own_epoch + 1))


def _agreed(path: Path, fresh: Memory) -> Memory:
    """Returns the memory in `path`, where it may be used for what `fresh` says."""
    memory = _read(path)
    faults = [
        f"is of {what} {old!r}, expected {new!r}"
        for what, old, new in (
            ("fleet", memory.fleet, fresh.fleet),
            ("device", memory.device_id, fresh.device_id),
            ("base model", memory.base or fresh.base, fresh.base or memory.base),
        )
        if old != new
    ]
    pinned, configured = memory.coordinator_key, fresh.coordinator_key
    if pinned and configured and pinned != configured:
        faults.append(f"has pinned coordinator key {pinned}, the configuration says {configured}")
    if faults:
        raise StateError.of(str(path), faults, "give another --state")
    is_proved = fresh.base_files and memory.base_files == fresh.base_files
    return msgspec.structs.replace(
        memory,
        format=FORMAT,
        base=memory.base if is_proved else fresh.base,
        base_files=fresh.base_files,
        coordinator_key=pinned or configured,
    )


def _read(path: Path) -> Memory:
    with room_for("reading", path.parent):
        content = path.read_bytes()
    try:
        number = msgspec.json.decode(content, type=_Format).format
        if number > FORMAT:
            raise StateError(
                f"{path}: has format {number}, this tunefleet reads up to {FORMAT}; "
                "upgrade it, or give another --state"
            )
        if number < FORMAT:
            content = _renewed(content, path.parent / VERSIONS)
        return msgspec.json.decode(content, type=Memory)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise StateError(f"{path}: is damaged: {error}; restore it, or give another --state") from error
