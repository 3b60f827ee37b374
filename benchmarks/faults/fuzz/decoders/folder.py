"""A folder of files, one of which is replaced by each input."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


class Replaced:
    """Decodes a folder in which one file is another.

    Args:
        folder: With every file in order; each process works on a copy beside it.
        name: The file that inputs are written to.
        read: Reads the folder.
    """

    def __init__(self, folder: Path, name: str, read: Callable[[Path], object]) -> None:
        self._template, self._name, self._read = folder, name, read
        self._own: Path | None = None

    def __call__(self, content: bytes) -> None:
        """Writes the input into the folder, and reads that."""
        if self._own is None:
            self._own = self._template.with_name(f"{self._template.name}-{os.getpid()}-{id(self):x}")
            shutil.copytree(self._template, self._own)
        (self._own / self._name).write_bytes(content)
        self._read(self._own)
