"""A small payload that comes in chunks and is held in memory: `PartFile` without a file, and without a disk.

A kill forgets it, and nothing is lost by that: whoever sends keeps it until its receipt, which is not given
before the payload is on the disk.
"""

import hashlib

from edge.errors import Rejected
from edge.protocol.merkle import proof_bytes, proven_chunk
from edge.protocol.receiving import Received


class HeldPart:
    """A payload of known size and hash being received.

    Args:
        size_bytes: Of the payload; the caller has bounded it.
        chunk_bytes: Of every chunk but the last.
        sha256: Of the payload, 64 hex digits.
        root: Of the Merkle tree over its chunks, 64 hex digits.

    Attributes:
        received: Which chunks are here.

    Raises:
        Rejected: `too-large`: it would have more chunks than are kept track of.
    """

    def __init__(self, size_bytes: int, chunk_bytes: int, sha256: str, root: str) -> None:
        self.received = Received(size_bytes, chunk_bytes)
        self._chunks: list[bytes] = [b""] * self.received.total
        self._sha256 = sha256
        self._root = root

    def write(self, number: int, message: bytes) -> bool:
        """Keeps a chunk that comes with its proof; False when it was there already.

        Raises:
            Rejected: `malformed`: no such chunk, or not of its length. `hash-mismatch`: another's chunk.
        """
        total = self.received.total
        if not self.received.lacks(number, len(message) - proof_bytes(number, total)):
            return False
        self._chunks[number] = proven_chunk(message, number, total, self._root)
        self.received.take(number)
        return True

    def content(self) -> bytes:
        """Returns the payload.

        Raises:
            Rejected: `hash-mismatch`: what was announced contradicts itself. `malformed`: chunks are missing.
        """
        if not self.received.is_complete:
            raise Rejected("malformed", f"chunks {self.received.missing(8)} are missing")
        content = b"".join(self._chunks)
        digest = hashlib.sha256(content).hexdigest()
        if digest != self._sha256:
            raise Rejected("hash-mismatch", f"sha256 {digest}, expected {self._sha256}")
        return content

    def discard(self) -> None:
        """Forgets what was received."""
        self._chunks.clear()
