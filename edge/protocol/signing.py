"""Ed25519 signatures over control messages (RFC 8032), with the `cryptography` package.

The signature is over the exact bytes of the body, as they stand in the `Signed` message: nobody has to agree
on a canonical JSON. Whether a key may speak for a device is decided by whoever pins it, not here.
"""

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edge.errors import Rejected
from edge.protocol.messages import R, Signed, decode_message, encode_message


def new_key() -> bytes:
    """Draws a private key, 32 bytes, from the system's random generator."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def public_key(private: bytes) -> str:
    """Returns the public key of `private`, 64 hex digits."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def sign_message(record: msgspec.Struct, private: bytes) -> bytes:
    """Returns `record` inside a `Signed` message, as JSON."""
    body = encode_message(record)
    key = Ed25519PrivateKey.from_private_bytes(private)
    signed = Signed(body=msgspec.Raw(body), key=public_key(private), signature=key.sign(body).hex())
    return encode_message(signed)


def open_signed(payload: bytes, kind: type[R]) -> tuple[R, str]:
    """Returns the record of `kind` inside the `Signed` message `payload`, and the signer's public key.

    Raises:
        ProtocolError: If it is not a signed message of that kind.
        Rejected: `bad-signature`.
    """
    signed = decode_message(payload, Signed)
    body = bytes(signed.body)
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(signed.key)).verify(
            bytes.fromhex(signed.signature), body
        )
    except (InvalidSignature, ValueError) as error:
        raise Rejected(
            "bad-signature", f"{kind.__name__} was not signed by key {signed.key[:16]}…"
        ) from error
    return decode_message(body, kind), signed.key
