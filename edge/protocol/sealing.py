"""Updates sealed from a device to its coordinator: HPKE (RFC 9180), X25519, HKDF-SHA256, ChaCha20-Poly1305.

    payload   facts, FACTS_BYTES of JSON filled up with spaces, sealed  |  the encoded delta, sealed

Each part is a message of its own, 48 bytes longer than what it holds: the sender's one-time key, and a tag.
So the delta is opened from a mapped file into one piece of memory, and there is no second one.
The context (`info`) names whose update of which version it is; a part that was sealed for another device,
version, attempt, base or coordinator does not open. Who sent it is the signature's business, not HPKE's.

The coordinator's sealing key is derived from its identity key, so that one that was restored from a backup
opens what was sealed before.
"""

from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edge.errors import ProtocolError, Rejected
from edge.protocol.messages import Facts, decode_message, encode_message

FACTS_BYTES = 256
OVERHEAD_BYTES = 48  # of a sealed part: a public key of 32 bytes, a tag of 16
SEALED_BYTES = 2 * OVERHEAD_BYTES + FACTS_BYTES  # what sealing adds to a payload
_LABEL = b"tunefleet/v2 seal"
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class Context(NamedTuple):
    """Whose update of what it is."""

    fleet: str
    device_id: str
    base_version: int
    attempt: int
    base_sha256: str  # of the base version's blob

    def info(self, part: str) -> bytes:
        """Returns what a part is bound to."""
        return "\n".join([_LABEL.decode(), part, *map(str, self)]).encode()


class Opened(NamedTuple):
    """What was sealed."""

    facts: Facts
    delta: bytes  # encoded


def sealing_key(identity: bytes) -> bytes:
    """Derives the private key that updates are opened with from a coordinator's identity key."""
    return HKDF(SHA256(), 32, salt=None, info=_LABEL).derive(identity)


def sealing_public_key(identity: bytes) -> str:
    """Returns the key that updates are sealed for, 64 hex digits."""
    return X25519PrivateKey.from_private_bytes(sealing_key(identity)).public_key().public_bytes_raw().hex()


def seal_update(facts: Facts, delta: bytes, key: str, context: Context) -> bytes:
    """Seals an update; each call gives other bytes, so they are kept until they are receipted.

    Args:
        facts: Of its training.
        delta: As it is encoded.
        key: The coordinator's, from the manifest: `sealing_public_key`.
        context: Whose update it is.

    Raises:
        ProtocolError: `key` is none.
    """
    try:
        public = X25519PublicKey.from_public_bytes(bytes.fromhex(key))
        filled = encode_message(facts).ljust(FACTS_BYTES)
        sealed = _SUITE.encrypt(filled, public, info=context.info("facts"))
        return sealed + _SUITE.encrypt(delta, public, info=context.info("delta"))
    except ValueError as error:
        raise ProtocolError(f"manifest: seal {key[:16]}… is no X25519 key: {error}") from error


def open_update(sealed: bytes | memoryview, identity: bytes, context: Context) -> Opened:
    """Opens a sealed update.

    Args:
        sealed: The payload; a view of a mapped file does.
        identity: The coordinator's private key.
        context: Whose update it is said to be.

    Raises:
        Rejected: `unsealable`: it was sealed for another key, or as another update, or changed on the way.
            `malformed`: its facts are none.
    """
    view, key = memoryview(sealed), X25519PrivateKey.from_private_bytes(sealing_key(identity))
    parts = {"facts": view[: FACTS_BYTES + OVERHEAD_BYTES], "delta": view[FACTS_BYTES + OVERHEAD_BYTES :]}
    opened = {}
    for part, content in parts.items():
        try:
            opened[part] = _SUITE.decrypt(content, key, info=context.info(part))
        except (InvalidTag, ValueError) as error:
            raise Rejected(
                "unsealable",
                f"the {part} of {len(view)} sealed bytes cannot be opened: sealed for another coordinator's "
                "key, as another update, or changed since",
            ) from error
    try:
        return Opened(decode_message(opened["facts"], Facts), opened["delta"])
    except Rejected:
        raise
    except ProtocolError as error:
        raise Rejected("malformed", str(error)) from error
