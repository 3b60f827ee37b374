"""A device's other key, brought to the coordinator's state folder by hand."""

import time
from pathlib import Path

from coordinator.ledger.contract import Journal
from edge.errors import ConfigError, ProtocolError, Rejected
from edge.protocol.enrolment import Enrol, Rotation, check_rotations
from edge.protocol.messages import decode_message

MAX_BYTES = 1 << 16


def read_rotations(path: Path) -> tuple[Rotation, ...]:
    """Reads what `tunefleet enroll --rotate --out` has written.

    Raises:
        ConfigError: It cannot be read, or is something else.
    """
    try:
        with path.open("rb") as file:
            rotations = decode_message(file.read(MAX_BYTES), Enrol).rotations
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ProtocolError as error:
        told = "expected what `tunefleet enroll --rotate --out` writes"
        raise ConfigError(f"{path}: is no rotation: {error}; {told}") from error
    if not rotations:
        raise ConfigError(f"{path}: is no rotation; expected what `tunefleet enroll --rotate --out` writes")
    return rotations


def rotate_key(
    journal: Journal, device: str, rotations: tuple[Rotation, ...], at: float | None = None
) -> str:
    """Gives a device its newest key, and returns it.

    Raises:
        ConfigError: The device was never here or is banned, or its old key has not signed for the new one.
    """
    known = journal.access.find(device)
    pinned = {one.device: one.key for one in journal.devices()}.get(device)
    key = (known.key if known else None) or pinned
    if key is None:
        raise ConfigError(f"no {device} was ever here; `tunefleet device allow {device} KEY` lets it in")
    if known and known.banned_at is not None:
        raise ConfigError(f"{device} is banned; `tunefleet device unban {device}` first")
    try:
        keys = check_rotations(rotations, journal.meta("fleet") or "", device, key)
    except Rejected as error:
        raise ConfigError(f"{device} keeps its key: {error.detail}") from error
    if len(keys) > 1:
        journal.access.rotate(device, keys, time.time() if at is None else at)
    return keys[-1]
