"""Where the files lie that are served."""

from typing import Protocol


class Blobs(Protocol):
    """Files by their sha256; `coordinator.ledger` keeps them."""

    def size(self, name: str) -> int:
        """Returns a blob's size in bytes, or raises `MissingObject`."""
        ...

    def get(self, name: str, start: int, length: int) -> bytes:
        """Returns `length` bytes of a blob, fewer at its end, or raises `MissingObject`."""
        ...
