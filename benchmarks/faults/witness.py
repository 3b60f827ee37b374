"""Sees each update enter a device's spool, whatever the program says of it.

A device that is killed between the two does not tell what it has spooled. The kernel does: a rename into a
folder is an event (inotify, Linux). What came is kept under another name of the same file, so that the audit
can add up what versions are made of.
"""

import contextlib
import ctypes
import os
import select
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

from converters.errors import TunefleetError

MOVED_IN, NONBLOCK, CLOEXEC = 0x80, 0o4000, 0o2000000
_EVENT = struct.Struct("iIII")


class Sight(NamedTuple):
    """One name that was renamed into a folder."""

    who: str  # whose folder
    path: Path


class Witness:
    """Watches folders from a thread of its own.

    Args:
        see: Called from that thread with each name that comes.

    Raises:
        TunefleetError: This is not Linux.
    """

    def __init__(self, see: Callable[[Sight], None]) -> None:
        if sys.platform != "linux":
            raise TunefleetError("what enters a spool is seen on Linux only (inotify)")
        self._see = see
        self._library = ctypes.CDLL(None, use_errno=True)
        self._file = self._library.inotify_init1(NONBLOCK | CLOEXEC)
        self._folders: dict[int, tuple[str, Path]] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def watch(self, who: str, folder: Path) -> None:
        """Watches one more folder, which must be there."""
        number = self._library.inotify_add_watch(self._file, os.fsencode(folder), MOVED_IN)
        if number < 0:
            raise TunefleetError(f"{folder}: cannot be watched: {os.strerror(ctypes.get_errno())}")
        self._folders[number] = (who, folder)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        os.close(self._file)

    def _run(self) -> None:
        while not self._is_over.is_set():
            ready, _, _ = select.select([self._file], [], [], 0.2)
            if ready:
                with contextlib.suppress(BlockingIOError):
                    self._tell(os.read(self._file, 1 << 16))

    def _tell(self, events: bytes) -> None:
        at = 0
        while at < len(events):
            number, _, _, length = _EVENT.unpack_from(events, at)
            at += _EVENT.size
            name = os.fsdecode(events[at : at + length].rstrip(b"\0"))
            at += length
            if number in self._folders and name:
                who, folder = self._folders[number]
                self._see(Sight(who, folder / name))
