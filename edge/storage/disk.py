"""Writes that are either there or not, whatever is killed in between, and disks that say no by their name.

A disk says no in many ways: it is full, it fails, somebody has mounted it read-only or taken the rights away,
the process has too many files open. All of them are mended from outside while the process waits, so all are
one error, `DiskRefused`, whose text says what to do.
"""

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from converters.files.atomic import write_atomic
from edge.errors import DiskFull, DiskRefused, StateError

# EFBIG and EDQUOT are a full disk to its user: a quota or a file size limit.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ADVICE = {
    errno.EIO: "check the disk",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "give this user the rights",
    errno.EPERM: "give this user the rights",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files",
    errno.ENOENT: "is the disk mounted, and the folder there",
}


@contextmanager
def room_for(what: str, folder: Path) -> Iterator[None]:
    """Names what keeps something from being written, or read.

    Raises:
        DiskFull: There is no room.
        DiskRefused: In place of any other error of the system's.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(what, folder, error) from error


def disk_error(what: str, folder: Path, error: OSError) -> DiskRefused:
    """Returns the error that tells what the system said when `what` was written in `folder`, or read."""
    reason, number = os.strerror(error.errno or 0), error.errno or 0
    if number in _FULL:
        return DiskFull(f"{folder}: no room for {what} ({reason}); free some, nothing was lost")
    advice = _ADVICE.get(number, "check the disk and its rights")
    return DiskRefused(f"{folder}: the disk refuses {what} ({reason}); {advice}; nothing was lost")


def write_file(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` in one step, and returns when it is on the disk.

    Raises:
        DiskRefused: The old file is still there as it was.
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
        DiskRefused: There is no room to make it, or the disk cannot be written to.
    """
    with room_for("the state folder", folder):
        try:
            for path in inner:
                path.mkdir(parents=True, exist_ok=True)
            lock = (folder / "lock").open("w")
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise StateError(f"{folder}: cannot be used as a state folder: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            if not isinstance(error, BlockingIOError):
                raise
            raise StateError(
                f"{folder}: another {owner} is running with this state folder; give each its own --state"
            ) from error
    return lock
