"""Blobs as files of one folder, or forgotten with the process."""
# ruff: noqa: D102 - `contract.Objects` says what the methods do

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from converters.plain import plain
from edge.errors import MissingObject
from edge.storage.disk import room_for, write_file

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class FileObjects:
    """`Objects` in a folder, which is made when something is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, content: bytes) -> None:
        path = self.folder / name
        if not path.exists():
            with room_for("a version", self.folder):
                self.folder.mkdir(exist_ok=True)
            write_file(path, content)

    def get(self, name: str, start: int = 0, length: int = -1) -> bytes:
        with self._found(name) as path, path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    def size(self, name: str) -> int:
        with self._found(name) as path:
            return path.stat().st_size

    def _path(self, name: str) -> Path:
        """Returns where a blob lies; the journal that names it may be damaged.

        Raises:
            MissingObject: No blob is called so.
        """
        if not _NAME.fullmatch(name):
            raise MissingObject(f"{self.folder}: holds nothing that is called {plain(name, 40)!r}")
        return self.folder / name

    def names(self) -> set[str]:
        with room_for("reading", self.folder):
            return {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()

    def remove(self, names: Iterable[str]) -> None:
        with room_for("the removal of what is needless", self.folder):
            for name in names:
                (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def _found(self, name: str) -> Iterator[Path]:
        path = self._path(name)
        with room_for("reading", self.folder):
            try:
                yield path
            except FileNotFoundError as error:
                raise MissingObject(f"{path}: is gone") from error


class MemoryObjects:
    """`Objects` in this process."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    def put(self, name: str, content: bytes) -> None:
        self._blobs.setdefault(name, content)

    def get(self, name: str, start: int = 0, length: int = -1) -> bytes:
        if name not in self._blobs:
            raise MissingObject(f"{name}: is gone")
        return self._blobs[name][start : None if length < 0 else start + length]

    def size(self, name: str) -> int:
        return len(self.get(name))

    def names(self) -> set[str]:
        return set(self._blobs)

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            self._blobs.pop(name, None)
