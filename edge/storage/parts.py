"""A file that comes in chunks, in any order and more than once, and survives a kill in between.

Every chunk proves itself when it comes (`edge.protocol.merkle`), so nobody's junk gets here.

One file holds the data and behind it a trailer: what is being received, and a byte per chunk that is there.
The byte is written after the chunk, so that what the trailer says is true after a SIGKILL; after a power cut
it may lie, and then the hash of the whole finds out. Nothing is kept open between calls, and memory is a byte
per chunk.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from edge.errors import Rejected
from edge.protocol.merkle import Tree, proof_bytes, proven_chunk
from edge.protocol.receiving import Received, bounded_chunks
from edge.storage.disk import room_for


class PartFile:
    """A payload of known size and hash being received at `path`.

    What an earlier process received there is taken up if it is the same payload in the same chunks; anything
    else at `path` is overwritten.

    Args:
        path: Where to keep the parts; its folder must exist.
        size_bytes: Of the payload; the caller has bounded it.
        chunk_bytes: Of every chunk but the last.
        sha256: Of the payload, 64 hex digits.
        root: Of the Merkle tree over its chunks, 64 hex digits.

    Attributes:
        received: Which chunks are here.

    Raises:
        Rejected: `too-large`: it would have more chunks than are kept track of.
        DiskRefused: There is no room to begin, or what is there cannot be read.
    """

    def __init__(self, path: Path, size_bytes: int, chunk_bytes: int, sha256: str, root: str) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.chunk_bytes = chunk_bytes
        self.sha256 = sha256
        self.root = root
        self._identity = f"{sha256} {size_bytes} {chunk_bytes}\n".encode()
        present = self._found()
        self.received = Received(size_bytes, chunk_bytes, present)
        if present is None:
            self._start_over()

    def write(self, number: int, message: bytes) -> bool:
        """Keeps a chunk that comes with its proof; False when it was there already.

        Raises:
            Rejected: `malformed`: no such chunk, or not of its length. `hash-mismatch`: another's chunk.
            DiskRefused: What was there before still is.
        """
        total = self.received.total
        if not self.received.lacks(number, len(message) - proof_bytes(number, total)):
            return False
        chunk = proven_chunk(message, number, total, self.root)
        with room_for("what is received", self.path), _opened(self.path, os.O_WRONLY) as file:
            _write_at(file, chunk, number * self.chunk_bytes)
            _write_at(file, b"\1", self.size_bytes + len(self._identity) + number)
        self.received.take(number)
        return True

    def finish(self, final_path: Path) -> bool:
        """Moves the payload to `final_path` in one step; reads all of it, so large ones belong in a thread.

        Returns:
            Whether it is there; False where the disk has lost what came, and every chunk is missing again.

        Raises:
            Rejected: `hash-mismatch`: what was announced contradicts itself. `malformed`: chunks are missing.
            DiskRefused: Nothing was moved, and it may be tried again.
        """
        if not self.received.is_complete:
            missing = self.received.missing(8)
            raise Rejected("malformed", f"chunks {missing} of {self.path.name} are missing")
        with room_for("what is received", self.path):
            digest = self._digest()
        if digest != self.sha256:
            with room_for("what is received", self.path):
                is_as_it_came = read_tree(self.path, self.size_bytes, self.chunk_bytes).root == self.root
            self._start_over()
            if is_as_it_came:
                raise Rejected("hash-mismatch", f"sha256 {digest}, expected {self.sha256}")
            return False
        with room_for("what is received", self.path):
            with _opened(self.path, os.O_WRONLY) as file:
                os.ftruncate(file, self.size_bytes)
                os.fsync(file)
            self.path.replace(final_path)
            with _opened(final_path.parent, os.O_RDONLY) as folder:
                os.fsync(folder)
        return True

    def discard(self) -> None:
        """Removes what was received.

        Raises:
            DiskRefused: It is still there.
        """
        with room_for("the removal of what was received", self.path):
            self.path.unlink(missing_ok=True)

    def _found(self) -> bytes | None:
        """Returns the map that an earlier process left; None where there is none for this payload."""
        count = bounded_chunks(self.size_bytes, self.chunk_bytes)
        with (
            room_for("what is received", self.path),
            contextlib.suppress(FileNotFoundError),
            _opened(self.path, os.O_RDONLY) as file,
        ):
            size = os.fstat(file).st_size
            if size == self.size_bytes and self._digest() == self.sha256:
                return b"\1" * count  # killed inside `finish`, when the trailer was gone already
            trailer = os.pread(file, len(self._identity) + count, self.size_bytes)
            if trailer.startswith(self._identity) and size == self.size_bytes + len(self._identity) + count:
                return trailer[len(self._identity) :]
        return None

    def _start_over(self) -> None:
        self.received.forget()
        with (
            room_for("what is received", self.path),
            _opened(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file,
        ):
            _write_at(file, self._identity + self.received.present, self.size_bytes)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            for start in range(0, self.size_bytes, 1 << 20):
                digest.update(file.read(min(1 << 20, self.size_bytes - start)))
        return digest.hexdigest()


def read_tree(path: Path, size_bytes: int, chunk_bytes: int) -> Tree:
    """Returns the Merkle tree over the first `size_bytes` of a file; a large one belongs in a thread."""
    with path.open("rb") as file:
        starts = range(0, size_bytes, chunk_bytes)
        return Tree(file.read(min(chunk_bytes, size_bytes - start)) for start in starts)


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def _write_at(file: int, data: bytes, offset: int) -> None:
    """Writes all of `data`: `pwrite` may stop short when the disk is nearly full."""
    written = os.pwrite(file, data, offset)
    while written < len(data):
        written += os.pwrite(file, memoryview(data)[written:], offset + written)
