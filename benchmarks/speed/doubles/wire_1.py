"""Wire version 1, of checkouts before version 2."""

from typing import Any

from edge.protocol.messages import (
    Hello,
    Manifest,
    Presence,
    Receipt,
    Signed,
    UpdateHeader,
    decode_message,
    encode_message,
)
from edge.protocol.signing import new_key, sign_message
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
        self._key = new_key()

    @property
    def presence_topic(self) -> str:
        """Where birth and will go."""
        return self.topics.device(self.device_id, "state")

    def presence(self, online: bool) -> bytes:
        """Returns birth or will."""
        return encode_message(Presence(online=online, epoch=1))

    def hello(self, manifest: Manifest) -> tuple[str, bytes]:
        """Returns topic and capability card."""
        card = Hello(
            device_id=self.device_id, backend="none", ranks=(manifest.rank,), encodings=("f32", "f16"),
            memory_bytes=1 << 30, tokens_per_s=None, base=manifest.base,
        )  # fmt: skip
        return self.topics.device(self.device_id, "hello"), sign_message(card, self._key)

    def header(self, header: UpdateHeader) -> tuple[str, bytes]:
        """Returns topic and signed header."""
        return self.topics.up(self.device_id, header.update, "header"), sign_message(header, self._key)

    def chunk(self, header: UpdateHeader, number: int, payload: bytes) -> tuple[str, bytes]:
        """Returns topic and chunk."""
        start = number * header.chunk_bytes
        topic = self.topics.up(self.device_id, header.update, number)
        return topic, payload[start : start + header.chunk_bytes]

    def receipt(self, payload: bytes) -> Receipt:
        """Returns a receipt."""
        return decode_message(bytes(decode_message(payload, Signed).body), Receipt)

    def facts(self, payload: bytes, chunk_bytes: int) -> dict[str, Any]:
        """Returns what this wire's header says of a payload beside its sha256."""
        return {}


def read_manifest(payload: bytes) -> Manifest:
    """Returns a manifest."""
    return decode_message(bytes(decode_message(payload, Signed).body), Manifest)
