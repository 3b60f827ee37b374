"""The bytes of a file, read or mapped into memory, or the one error of whoever asked."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from converters.files.text import Told

Mapped = bytes | mmap.mmap  # an empty file cannot be mapped


def read_content(path: Path, told: Told, *, takes_pipes: bool = False) -> bytes:
    """Reads a whole file.

    Args:
        path: Of the file.
        told: Makes the error.
        takes_pipes: Whether it may be what a shell gives for `<(…)`; a folder's pipe would be waited for.

    Raises:
        TunefleetError: What `told` makes of it: it is not there, no file, or cannot be read.
    """
    with reading(path, told, takes_pipes=takes_pipes):
        return path.read_bytes()


def is_there(path: Path) -> bool:
    """Tells whether something is at `path`; a name that no file can have is not there."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Tells whether a file is at `path`."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Tells whether a folder is at `path`."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


@contextmanager
def reading(path: Path, told: Told, *, takes_pipes: bool = False) -> Iterator[None]:
    """Tells why the file at `path` cannot be read, before it is opened and while it is.

    Raises:
        TunefleetError: What `told` makes of it.
    """
    try:
        mode = path.stat().st_mode
        if not (S_ISREG(mode) or S_ISDIR(mode) or takes_pipes):
            raise told("cannot be read: it is a pipe or a device, expected a file")
        yield
    except (OSError, ValueError) as cause:  # the latter: a name that no file can have
        raise told(f"cannot be read: {getattr(cause, 'strerror', None) or cause}") from cause


def map_file(path: Path, told: Told) -> Mapped:
    """Maps the file at `path` into memory.

    Raises:
        TunefleetError: What `told` makes of it: it is not there, no file, or cannot be read.
    """
    with reading(path, told), path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.seek(0, 2) else b""
