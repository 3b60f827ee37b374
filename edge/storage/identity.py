"""The private key of a device or a coordinator, made at first use and readable by its owner only.

The first line of the file is the key. Where it has replaced another, the next lines are the words of the keys
before it, oldest first (`edge.protocol.enrolment`): they change with the key in one step, and stay with it.
"""

from pathlib import Path

from converters.files.content import is_file, is_there
from edge.errors import ProtocolError, StateError
from edge.protocol.enrolment import MAX_ROTATIONS, Rotation, make_rotation
from edge.protocol.messages import decode_message, encode_message
from edge.protocol.signing import new_key
from edge.storage.disk import room_for, sync_folder, write_through

FILE = "identity.key"


def read_identity(folder: Path, advice: str) -> bytes:
    """Returns the key in `folder`, 32 bytes.

    Args:
        folder: A state folder.
        advice: What to do when the key is damaged.

    Raises:
        StateError: The file holds no key.
        DiskRefused: There is no room to make one, or it cannot be read.
    """
    path = folder / FILE
    if not is_there(path):
        _write(folder, new_key(), ())
    return _read(path, advice)[0]


def read_rotations(folder: Path, advice: str) -> tuple[Rotation, ...]:
    """Returns how the key in `folder` follows from those before it, oldest first; empty for the first.

    Raises:
        StateError: The file is damaged.
    """
    path = folder / FILE
    return _read(path, advice)[1] if is_there(path) else ()


def rotate_identity(folder: Path, fleet: str, device_id: str, advice: str) -> tuple[Rotation, ...]:
    """Replaces the key in `folder` by a new one that the old one has signed for, in one step.

    Args:
        folder: A state folder, which no other process uses.
        fleet: The fleet's name.
        device_id: The device's.
        advice: What to do when the key is damaged.

    Returns:
        How the new key follows from those before it.

    Raises:
        StateError: There is no key yet, or the file is damaged.
        DiskRefused: The key is the old one.
    """
    path = folder / FILE
    if not is_there(path):
        raise StateError(f"{folder}: holds no key that another could replace")
    old, before = _read(path, advice)
    new = new_key()
    rotations = (*before, make_rotation(fleet, device_id, old, new))[-MAX_ROTATIONS:]
    _write(folder, new, rotations)
    return rotations


def _write(folder: Path, key: bytes, rotations: tuple[Rotation, ...]) -> None:
    draft, path = folder / f".{FILE}.partial", folder / FILE
    lines = [key.hex().encode(), *(encode_message(rotation) for rotation in rotations)]
    with room_for("a key", folder):
        draft.unlink(missing_ok=True)  # its mode would stay
        write_through(draft, b"\n".join(lines), mode=0o600)
        draft.replace(path)
        sync_folder(folder)


def _read(path: Path, advice: str) -> tuple[bytes, tuple[Rotation, ...]]:
    with room_for("a key", path.parent):
        content = path.read_bytes() if is_file(path) else b""  # a pipe would be waited for
    first, *words = content.splitlines() or [b""]
    try:
        key = bytes.fromhex(first.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != 32:
        raise StateError(f"{path}: is damaged, expected 64 hex digits; {advice}")
    try:
        return key, tuple(decode_message(word, Rotation) for word in words if word)
    except ProtocolError as error:
        raise StateError(f"{path}: is damaged behind its key: {error}; {advice}") from error
