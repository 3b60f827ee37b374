"""A file as memory that the system may take back: what is read once needs no copy of its own."""

import mmap
from pathlib import Path


def map_file(path: Path) -> memoryview:
    """Returns what is in a file; it is let go of when the view is."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:  # which cannot be mapped
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
