"""What a double says in the wire of the checkout that it runs with: before and after version 2.

The doubles run with the packages of the checkout whose coordinator is measured (`benchmarks.speed.load`), so
that headers, signatures and the patience of the sender are that checkout's own.
"""

from typing import Any

from edge.protocol.messages import Hello, Manifest, Presence, Receipt, UpdateHeader, encode_message
from edge.protocol.sending import Push
from edge.protocol.signing import new_key, open_signed, sign_message
from edge.protocol.topics import Topics

PATIENCE_S = 10.0  # of a device as it is configured by default


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
        self._epoch = 1

    @property
    def presence_topic(self) -> str:
        """Where birth and will go."""
        return self.topics.device(self.device_id, "state")

    def presence(self, online: bool) -> bytes:
        """Returns birth or will."""
        return encode_message(Presence(online=online, epoch=self._epoch))

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
        """Returns a receipt whose signature is right."""
        return open_signed(payload, Receipt)[0]

    def facts(self, payload: bytes) -> dict[str, Any]:
        """Returns what this wire's header says of a payload beside its sha256."""
        return {}


def read_manifest(payload: bytes) -> Manifest:
    """Returns a manifest whose signature is right."""
    return open_signed(payload, Manifest)[0]


def new_push(total: int) -> Push:
    """Returns the sender's machine for one update."""
    return Push(total, PATIENCE_S)
