"""Writes that are either there or not, whatever is killed in between, and full disks by their name."""

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from converters.files.atomic import write_atomic
from edge.errors import DiskFull, StateError

# EFBIG and EDQUOT are a full disk to its user: a quota or a file size limit.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def room_for(what: str, folder: Path) -> Iterator[None]:
    """Names a full disk.

    Raises:
        DiskFull: In place of the system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFull(
            f"{folder}: no room for {what} ({os.strerror(error.errno or 0)}); free some, nothing was lost"
        ) from error


def write_file(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` in one step, and returns when it is on the disk.

    Raises:
        DiskFull: The old file is still there as it was.
    """
    with room_for(path.name, path.parent):
        write_atomic(path, content)


def write_through(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Writes a file that nobody reads yet, through to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Brings a folder's names to the disk: without it a rename may be forgotten at a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def claim_folder(folder: Path, inner: Iterable[Path], owner: str) -> TextIO:
    """Makes a state folder and takes its lock, which is held until the returned file is closed.

    Args:
        folder: Of one process at a time.
        inner: Folders in it, made too.
        owner: What runs there, for the message.

    Raises:
        StateError: The folder cannot be used, or another process holds it.
        DiskFull: There is no room to make it.
    """
    try:
        with room_for("the state folder", folder):
            for path in inner:
                path.mkdir(parents=True, exist_ok=True)
            lock = (folder / "lock").open("w")
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise StateError(f"{folder}: cannot be used as a state folder: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise StateError(
            f"{folder}: another {owner} is running with this state folder; give each its own --state"
        ) from error
    return lock
