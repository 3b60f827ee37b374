"""Wire version 2: envelopes over topic, epoch and count, and chunks with their proofs."""

import functools
from typing import Any

from edge.protocol.chunks import split_chunks
from edge.protocol.merkle import Tree
from edge.protocol.messages import Hello, Manifest, Presence, Receipt, UpdateHeader, decode_message
from edge.protocol.signing import Signer, new_key, read_signed
from edge.protocol.topics import Topics


class Voice:
    """One device's key and topics.

    Args:
        fleet: The fleet's name.
        device_id: The device's.
    """

    def __init__(self, fleet: str, device_id: str) -> None:
        self.topics = Topics(fleet)
        self.device_id = device_id
        self._signer = Signer(new_key(), 1)

    @property
    def presence_topic(self) -> str:
        """Where birth and will go."""
        return self.topics.device(self.device_id, "state")

    def presence(self, online: bool) -> bytes:
        """Returns birth or will."""
        return self._signer.seal(self.presence_topic, Presence(online=online))

    def hello(self, manifest: Manifest) -> tuple[str, bytes]:
        """Returns topic and capability card."""
        card = Hello(
            device_id=self.device_id, backend="none", ranks=(manifest.rank,), encodings=("f32", "f16"),
            memory_bytes=1 << 30, tokens_per_s=None, base=manifest.base,
        )  # fmt: skip
        topic = self.topics.device(self.device_id, "hello")
        return topic, self._signer.seal(topic, card)

    def header(self, header: UpdateHeader) -> tuple[str, bytes]:
        """Returns topic and signed header."""
        topic = self.topics.up(self.device_id, header.update, "header")
        return topic, self._signer.seal(topic, header)

    def chunk(self, header: UpdateHeader, number: int, payload: bytes) -> tuple[str, bytes]:
        """Returns topic and chunk, with its proof."""
        start = number * header.chunk_bytes
        topic = self.topics.up(self.device_id, header.update, number)
        proof = _tree(payload, header.chunk_bytes).proof(number)
        return topic, proof + payload[start : start + header.chunk_bytes]

    def receipt(self, payload: bytes) -> Receipt:
        """Returns a receipt."""
        return decode_message(bytes(read_signed(payload).body), Receipt)

    def facts(self, payload: bytes, chunk_bytes: int) -> dict[str, Any]:
        """Returns what this wire's header says of a payload beside its sha256."""
        return {"root": _tree(payload, chunk_bytes).root}


def read_manifest(payload: bytes) -> Manifest:
    """Returns a manifest."""
    return decode_message(bytes(read_signed(payload).body), Manifest)


@functools.lru_cache(1)  # all doubles send one payload
def _tree(payload: bytes, chunk_bytes: int) -> Tree:
    return Tree(split_chunks(payload, chunk_bytes))
