"""The Merkle trees of the files that are served: read once, and the latest kept."""

import asyncio

from edge.delivery.blobs import Blobs
from edge.protocol.merkle import Tree

MOST = 32  # a large fleet has a handful of tiers, and devices ask for the version before, too


class Trees:
    """The trees of blobs.

    Args:
        blobs: Where they lie.
        chunk_bytes: Of every blob.
    """

    def __init__(self, blobs: Blobs, chunk_bytes: int) -> None:
        self._blobs = blobs
        self._chunk_bytes = chunk_bytes
        self._trees: dict[str, Tree] = {}  # the one that was asked for longest ago comes first

    async def of(self, sha256: str) -> Tree:
        """Returns a blob's tree.

        Raises:
            MissingObject: There is no such blob.
        """
        tree = self._trees.pop(sha256, None)
        if tree is None:
            tree = await asyncio.to_thread(self._read, sha256)
        self._trees[sha256] = tree
        if len(self._trees) > MOST:
            del self._trees[next(iter(self._trees))]
        return tree

    def _read(self, sha256: str) -> Tree:
        size, step = self._blobs.size(sha256), self._chunk_bytes
        return Tree(self._blobs.get(sha256, start, step) for start in range(0, size, step))
