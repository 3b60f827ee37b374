"""Blobs as files of one folder."""

from collections.abc import Iterable
from pathlib import Path

from edge.errors import MissingObject
from edge.storage.disk import room_for, write_file


class FileObjects:
    """`Objects` in a folder, each a file of its name.

    Args:
        folder: Made where it is missing, when something is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, content: bytes) -> None:
        """See `Objects`."""
        path = self.folder / name
        if not path.exists():
            with room_for("a version", self.folder):
                self.folder.mkdir(exist_ok=True)
            write_file(path, content)

    def get(self, name: str, start: int = 0, length: int = -1) -> bytes:
        """See `Objects`."""
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except FileNotFoundError as error:
            raise MissingObject(f"{self.folder / name}: is gone") from error

    def size(self, name: str) -> int:
        """See `Objects`."""
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError as error:
            raise MissingObject(f"{self.folder / name}: is gone") from error

    def names(self) -> set[str]:
        """See `Objects`."""
        return {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()

    def remove(self, names: Iterable[str]) -> None:
        """See `Objects`."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
