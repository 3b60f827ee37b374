"""Messages that prove themselves: Ed25519 signatures (RFC 8032) over topic, epoch, count and body.

The topic is in what is signed, so nothing can be moved to another fleet, device or kind; epoch and count only
rise, so nothing can be sent again by somebody else (`Stamp`); and the body is signed by its exact bytes, so
nobody has to agree on a canonical JSON. Whether a key may speak for a device is decided by whoever pins it,
and how far a signer has come is remembered by whoever listens: neither here.
"""

import hashlib
import hmac
from typing import Generic, NamedTuple, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Raw, Struct

from edge.errors import Outdated, ProtocolError, Repeated, Unproven
from edge.protocol.messages import Signed, decode_message, encode_message

R = TypeVar("R", bound=Struct)
MOST_KEYS = 4096  # loaded at a time; strangers' keys must not fill the memory


class Stamp(NamedTuple):
    """When something was signed, as its signer counts: stamps of one key rise and never come again."""

    epoch: int  # of the signer's session, ms; later than any before
    number: int  # of the message in that session


NEVER = Stamp(0, -1)


def check_order(stamp: Stamp, latest: Stamp, what: str, *, again: bool) -> None:
    """Checks that a message is later than the latest that came.

    Args:
        stamp: Of the message.
        latest: Of the latest.
        what: The message, in words.
        again: Whether the latest itself may come again, as what is retained does with each subscription.

    Raises:
        Outdated: It is earlier.
        Repeated: It is the latest.
    """
    if stamp.epoch < latest.epoch:
        raise Outdated(
            f"{what} was signed in epoch {stamp.epoch}, which was followed by {latest.epoch}: it is late or "
            "sent again; where no later one comes, set its signer's clock, which is behind, and restart that"
        )
    if stamp < latest:
        raise Outdated(f"{what} {stamp.number} of its epoch came after {latest.number}: late, or sent again")
    if stamp == latest and not again:
        raise Repeated(f"{what} came once more")


class Opened(NamedTuple, Generic[R]):
    """A message whose signature is right."""

    record: R
    key: str  # public, of who signed it
    stamp: Stamp
    body: bytes  # the very bytes that were signed

    @property
    def digest(self) -> str:
        """Returns the SHA-256 of the body, as receipts name a header."""
        return hashlib.sha256(self.body).hexdigest()


def new_key() -> bytes:
    """Draws a private key, 32 bytes, from the system's random generator."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def public_key(private: bytes) -> str:
    """Returns the public key of `private`, 64 hex digits."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def alias_of(private: bytes) -> str:
    """Returns 16 hex digits that nobody but the key's holders can tell, always the same.

    Client ids bear them, since a broker gives a client's place to whoever says its id.
    """
    return hmac.digest(private, b"tunefleet client id", "sha256")[:8].hex()


class Signer:
    """One session of whoever signs.

    Args:
        private: The key, 32 bytes.
        epoch: Of the session: later than that of every session before, over restarts too.

    Attributes:
        key: The public key, 64 hex digits.
        epoch: Of the session.
        alias: Of the key, as `alias_of`.
    """

    def __init__(self, private: bytes, epoch: int) -> None:
        self.alias = alias_of(private)
        self._private = Ed25519PrivateKey.from_private_bytes(private)
        self._count = 0
        self.key = self._private.public_key().public_bytes_raw().hex()
        self.epoch = epoch

    def seal(self, topic: str, record: Struct) -> bytes:
        """Returns `record` as it goes to `topic`, in its envelope; under the next count."""
        return self.seal_body(topic, encode_message(record))

    def seal_body(self, topic: str, body: bytes) -> bytes:
        """Does the same for a record that is encoded already."""
        self._count += 1
        stamp = Stamp(self.epoch, self._count)
        signature = self._private.sign(_signed_bytes(topic, stamp, body)).hex()
        return encode_message(
            Signed(body=Raw(body), key=self.key, signature=signature, epoch=stamp.epoch, count=stamp.number)
        )


class Keyring:
    """Opens envelopes, and keeps the public keys that it has loaded."""

    def __init__(self) -> None:
        self._loaded: dict[str, Ed25519PublicKey] = {}

    def open(self, topic: str, signed: Signed, kind: type[R]) -> Opened[R]:
        """Returns the record of `kind` that was signed for `topic`.

        Raises:
            Unproven: The signature is not of that key over this topic, stamp and body.
            ProtocolError: It is, and the body is no `kind`.
        """
        self.verify(topic, signed, kind.__name__)
        body = bytes(signed.body)
        return Opened(decode_message(body, kind), signed.key, stamp_of(signed), body)

    def verify(self, topic: str, signed: Signed, what: str) -> None:
        """Checks who has signed an envelope for `topic`; `what` is in it, in words.

        Raises:
            Unproven: It is not the key that it names.
        """
        text = _signed_bytes(topic, stamp_of(signed), bytes(signed.body))
        try:
            self._key(signed.key).verify(bytes.fromhex(signed.signature), text)
        except (InvalidSignature, ValueError) as error:
            told = f"bad signature: {what} was not signed by key {signed.key[:16]}… for this topic"
            raise Unproven(told) from error

    def _key(self, key: str) -> Ed25519PublicKey:
        loaded = self._loaded.get(key)
        if loaded is None:
            loaded = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
            if len(self._loaded) >= MOST_KEYS:
                del self._loaded[next(iter(self._loaded))]
            self._loaded[key] = loaded
        return loaded


def read_signed(payload: bytes) -> Signed:
    """Returns the envelope in `payload`, of which nothing is proven.

    Raises:
        Unproven: There is none.
    """
    try:
        return decode_message(payload, Signed)
    except ProtocolError as error:
        raise Unproven(str(error)) from error


def stamp_of(signed: Signed) -> Stamp:
    """Returns when an envelope says that it was signed."""
    return Stamp(signed.epoch, signed.count)


def _signed_bytes(topic: str, stamp: Stamp, body: bytes) -> bytes:
    return f"tunefleet/v2\n{topic}\n{stamp.epoch}\n{stamp.number}\n".encode() + body
