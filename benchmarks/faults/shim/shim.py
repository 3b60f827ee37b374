"""Compiles the shim, and steers it in one process while that runs."""

import errno
import mmap
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from converters.errors import TunefleetError

SOURCE = Path(__file__).with_name("shim.c")
_CONTROL = struct.Struct("=qii")
CALLS = {"open": 1, "write": 2, "sync": 4, "name": 8, "read": 16}  # as in shim.c
# How a disk fails: its errno, and the calls that say so.
DISKS = {
    "full": (errno.ENOSPC, ("write", "open", "name")),
    "failing": (errno.EIO, ("write", "sync")),
    "read-only": (errno.EROFS, ("open", "name", "write")),
    "denied": (errno.EACCES, ("open", "name")),
    "too-many-files": (errno.EMFILE, ("open",)),
}


def compile_shim(folder: Path) -> Path:
    """Compiles the library into `folder`, where it is not there yet, and returns its path.

    Raises:
        TunefleetError: This is not Linux, there is no C compiler, or it fails.
    """
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        raise TunefleetError(
            "clocks and disks are made to fail on Linux only, with a C compiler: apt install gcc"
        )
    library = folder / "shim.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=folder) as draft:
        made = Path(draft) / library.name
        flags = ("-std=gnu11", "-O2", "-shared", "-fPIC", "-U_FORTIFY_SOURCE")
        done = subprocess.run([compiler, *flags, "-o", made, SOURCE, "-ldl"], capture_output=True, text=True)
        if done.returncode:
            raise TunefleetError(f"{SOURCE}: {compiler} fails: {done.stderr.strip()}")
        made.rename(library)
    return library


class Shim:
    """What one process believes of its clock and of the disk below one folder.

    Args:
        library: Of `compile_shim`.
        control: A file for this process alone; it is made.
        disk: The folder whose files can be made to fail; of others nothing changes.
    """

    def __init__(self, library: Path, control: Path, disk: Path) -> None:
        control.write_bytes(_CONTROL.pack(0, 0, 0))
        with control.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), _CONTROL.size)
        self._offset_ns, self._error, self._calls = 0, 0, 0
        self.environment: Mapping[str, str] = {
            "LD_PRELOAD": str(library.resolve()),
            "FAULTS_CONTROL": str(control.resolve()),
            "FAULTS_DISK": str(disk.resolve()),
        }

    def set_clock(self, offset_s: float) -> None:
        """Sets the wall clock so far ahead of the machine's; below 0 it is behind."""
        self._offset_ns = int(offset_s * 1e9)
        self._steer()

    def fail_disk(self, error: int, *calls: str) -> None:
        """Has some of `CALLS` fail with an errno from now on."""
        self._error, self._calls = error, sum(CALLS[name] for name in set(calls))
        self._steer()

    def break_disk(self, way: str) -> None:
        """Has the disk fail in one of the ways of `DISKS`."""
        error, calls = DISKS[way]
        self.fail_disk(error, *calls)

    def mend_disk(self) -> None:
        """Has nothing fail any more."""
        self.fail_disk(0)

    def _steer(self) -> None:
        self._control[:] = _CONTROL.pack(self._offset_ns, self._error, self._calls)
