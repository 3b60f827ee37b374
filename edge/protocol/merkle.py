"""Merkle trees over a payload's chunks, as in RFC 6962, section 2.1.

The root stands in what is signed (an update's header, a manifest), and every chunk brings its proof: the
nodes beside its way up to the root, 32 bytes each, lowest first. So whoever receives a chunk knows at once
whether it is the right one, whoever sent it. How many nodes a proof has follows from the chunk's number and
from how many there are: nothing in a message says where the proof ends.
"""

import hashlib
from collections.abc import Iterable

from edge.errors import Rejected

NODE_BYTES = 32


class Tree:
    """The tree over a payload's chunks; 64 bytes of memory for each of them.

    Args:
        chunks: Of the payload, in order; none are kept.

    Attributes:
        root: 64 hex digits.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        levels = [[_leaf(chunk) for chunk in chunks]]
        while len(levels[-1]) > 1:
            levels.append(_above(levels[-1]))
        self._levels = levels
        self.root = levels[-1][0].hex() if levels[0] else hashlib.sha256().hexdigest()

    @property
    def num_chunks(self) -> int:
        """Returns how many chunks the payload has."""
        return len(self._levels[0])

    def proof(self, number: int) -> bytes:
        """Returns the nodes beside the way from a chunk to the root, lowest first."""
        nodes = bytearray()
        for level in self._levels[:-1]:
            if number ^ 1 < len(level):  # the last node of an odd level goes up as it is
                nodes += level[number ^ 1]
            number >>= 1
        return bytes(nodes)


def proof_bytes(number: int, total: int) -> int:
    """Returns how long the proof of chunk `number` of `total` is."""
    length = 0
    while total > 1:
        length += NODE_BYTES * (number ^ 1 < total)
        number, total = number >> 1, (total + 1) >> 1
    return length


def proven_chunk(message: bytes, number: int, total: int, root: str) -> bytes:
    """Returns the chunk in `message`, a proof and the chunk, where it belongs under `root`.

    Args:
        message: As it came.
        number: The chunk's, from 0 to `total` - 1.
        total: How many chunks the payload has.
        root: 64 hex digits.

    Raises:
        Rejected: `hash-mismatch`: it is no chunk of this payload, or another one.
    """
    length = proof_bytes(number, total)
    proof, chunk = message[:length], message[length:]
    node, position = _leaf(chunk), 0
    index, width = number, total
    while width > 1:
        if index ^ 1 < width:
            sibling = proof[position : position + NODE_BYTES]
            position += NODE_BYTES
            node = _node(sibling, node) if index & 1 else _node(node, sibling)
        index, width = index >> 1, (width + 1) >> 1
    if node.hex() != root:
        raise Rejected("hash-mismatch", f"chunk {number} does not belong to the payload that was announced")
    return chunk


def _leaf(chunk: bytes) -> bytes:
    digest = hashlib.sha256(b"\0")
    digest.update(chunk)  # no copy of the chunk
    return digest.digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _above(level: list[bytes]) -> list[bytes]:
    pairs = [_node(*level[start : start + 2]) for start in range(0, len(level) - 1, 2)]
    return pairs + level[len(level) & ~1 :]
