"""Writes that are either there or not, whatever is killed in between."""

import os
from pathlib import Path


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces `path` by `content`, on disk before it returns.

    Raises:
        OSError: The disk is full or not writable; nothing was replaced.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, outlives a power cut
    finally:
        os.close(folder)
