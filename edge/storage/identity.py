"""The private key of a device or a coordinator, made at first use and readable by its owner only."""

from pathlib import Path

from edge.errors import StateError
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
    with room_for("a key", folder):
        if not path.exists():
            draft = folder / f".{FILE}.partial"
            write_through(draft, new_key().hex().encode(), mode=0o600)
            draft.replace(path)
            sync_folder(folder)
        try:
            key = bytes.fromhex(path.read_text("ascii"))
        except ValueError:
            key = b""
    if len(key) != 32:
        raise StateError(f"{path}: is damaged, expected 64 hex digits; {advice}")
    return key
