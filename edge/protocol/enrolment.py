"""How a device proves that it may be in a fleet: by a token of the coordinator's, or by its key before.

A **token** is a pair of keys that the coordinator has signed for: a public one, beside the fleet, the time it
ends and how many devices it lets in, and a private one, which whoever holds the token signs with and which
never travels. A device sends its **claim**: the public half, and the token's signature over the device's own
id and key. Who reads it on the broker, or finds the token in a log after it was used, has nothing that would
let another key in. The token names the coordinator's key as well, so that the device pins the right one from
the start.

A **rotation** is the word of a device's old key for its new one. It is kept beside the new key for good: a
coordinator that was restored from a backup can be told again.

Each signature is over a text that begins with what it is for, so that none can be taken for another.
"""

import base64
import binascii
from typing import Annotated, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from edge.errors import ConfigError, Rejected
from edge.protocol.messages import Id, Record, Sha256
from edge.protocol.signing import public_key

PREFIX = "tunefleet-token-"
MAX_USES = 10_000
MAX_ROTATIONS = 8  # that a key is kept with; who was away for longer is let in anew
Signature = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]


class Grant(Record, frozen=True):
    """What the coordinator signs: whoever proves to hold `nonce`'s private key may enrol a device."""

    fleet: Id
    expires: Annotated[int, Meta(ge=0, le=2**40)]  # Unix time in seconds
    nonce: Sha256  # the token's own public key
    coordinator: Sha256  # public key
    uses: Annotated[int, Meta(ge=1, le=MAX_USES)] = 1
    device_id: Id | None = None  # the only one that it is for


class Token(Record, frozen=True):
    """What the owner of a fleet hands to a device, as text (`write_token`, `read_token`)."""

    grant: Grant
    signature: Signature  # the coordinator's
    secret: Sha256  # the token's private key


class Claim(Record, frozen=True):
    """What says that a device holds a token."""

    grant: Grant
    signature: Signature  # the coordinator's, over the grant
    proof: Signature  # the token's, over the device's id and key


class Rotation(Record, frozen=True):
    """The word of a device's old key for its new one."""

    fleet: Id
    device_id: Id
    old: Sha256
    new: Sha256
    signature: Signature  # of `old`


class Enrol(Record, frozen=True, omit_defaults=True):
    """Topic `device/<id>/enrol`, inside `Signed`: why the key that signs it may speak for the device."""

    claim: Claim | None = None
    rotations: Annotated[tuple[Rotation, ...], Meta(max_length=MAX_ROTATIONS)] = ()  # oldest first


class AccessNotice(Record, frozen=True, omit_defaults=True):
    """Topic `device/<id>/access`, inside `Signed`: how the coordinator stands to a device's key.

    Nobody else is answered: who is unknown hears nothing.
    """

    key: Sha256  # public, of the device
    standing: Literal["enrolled", "banned"]
    news: Annotated[str, Meta(max_length=200)] = ""  # what has changed by what the device sent


def draw_token(
    private: bytes,
    fleet: str,
    expires: int,
    uses: int = 1,
    device_id: str | None = None,
) -> Token:
    """Makes a token.

    Args:
        private: The coordinator's key.
        fleet: Its fleet.
        expires: Unix time in seconds.
        uses: How many devices it lets in.
        device_id: The only device that it is for; None lets its holder choose.
    """
    own = Ed25519PrivateKey.generate()
    grant = Grant(
        fleet=fleet,
        expires=expires,
        nonce=own.public_key().public_bytes_raw().hex(),
        coordinator=public_key(private),
        uses=uses,
        device_id=device_id,
    )
    signature = Ed25519PrivateKey.from_private_bytes(private).sign(_granted(grant)).hex()
    return Token(grant=grant, signature=signature, secret=own.private_bytes_raw().hex())


def write_token(token: Token) -> str:
    """Writes a token as one word that can be pasted."""
    return PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(token)).decode().rstrip("=")


def read_token(text: str) -> Token:
    """Reads a token as somebody has pasted it.

    Raises:
        ConfigError: It is none, or a part of one, or was changed.
    """
    word = "".join(text.split())
    try:
        if not word.startswith(PREFIX):
            raise ValueError
        packed = word.removeprefix(PREFIX)
        content = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
        token = msgspec.msgpack.decode(content, type=Token)
        check_signature(token.grant.coordinator, token.signature, _granted(token.grant), "the token")
        if public_key(bytes.fromhex(token.secret)) != token.grant.nonce:
            raise ValueError
    except (ValueError, binascii.Error, msgspec.MsgspecError, Rejected, RecursionError) as error:
        raise ConfigError(
            f"the token is not whole: expected {PREFIX}… as `tunefleet device token` prints it, "
            f"of {len(word)} characters"
        ) from error
    return token


def make_claim(token: Token, device_id: str, key: str) -> Claim:
    """Returns what the device of that id and public key sends to be let in."""
    secret = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(token.secret))
    proof = secret.sign(_claimed(token.grant, device_id, key)).hex()
    return Claim(grant=token.grant, signature=token.signature, proof=proof)


def check_claim(claim: Claim, fleet: str, coordinator: str, device_id: str, key: str, at: float) -> None:
    """Checks everything of a claim but whether its token was used up.

    Args:
        claim: Of a device.
        fleet: Which it must be for.
        coordinator: The public key that must have signed it.
        device_id: The device.
        key: Its public key, which signed the message.
        at: Unix time in seconds.

    Raises:
        Rejected: `bad-signature` or `unknown-device`.
    """
    grant = claim.grant
    if (grant.fleet, grant.coordinator) != (fleet, coordinator):
        raise Rejected("unknown-device", "the token is of another coordinator")
    check_signature(coordinator, claim.signature, _granted(grant), "the token")
    check_signature(grant.nonce, claim.proof, _claimed(grant, device_id, key), "the claim")
    if grant.device_id not in (None, device_id):
        raise Rejected("unknown-device", f"the token is for {grant.device_id}, not for {device_id}")
    if at > grant.expires:
        raise Rejected("unknown-device", f"{device_id} came {at - grant.expires:.0f} s after its token ended")


def make_rotation(fleet: str, device_id: str, old: bytes, new: bytes) -> Rotation:
    """Returns the word of the private key `old` for `new`."""
    rotation = Rotation(
        fleet=fleet, device_id=device_id, old=public_key(old), new=public_key(new), signature="0" * 128
    )
    signature = Ed25519PrivateKey.from_private_bytes(old).sign(_rotated(rotation)).hex()
    return msgspec.structs.replace(rotation, signature=signature)


def check_rotations(
    rotations: tuple[Rotation, ...], fleet: str, device_id: str, pinned: str
) -> tuple[str, ...]:
    """Follows a device's keys from the one that is pinned to its newest.

    Returns:
        The keys from `pinned` to the newest; of length 1 where `pinned` is the newest already.

    Raises:
        Rejected: `bad-signature`, or `unknown-device`: they do not lead from `pinned`.
    """
    keys: tuple[str, ...] = (pinned,)
    for rotation in rotations:
        if (rotation.fleet, rotation.device_id) != (fleet, device_id):
            raise Rejected("unknown-device", f"a rotation of {rotation.device_id} of fleet {rotation.fleet}")
        if rotation.old == keys[-1]:
            check_signature(rotation.old, rotation.signature, _rotated(rotation), "the rotation")
            keys += (rotation.new,)
    newest = rotations[-1].new if rotations else None
    if keys[-1] != newest:
        raise Rejected(
            "unknown-device", f"{device_id} has key {pinned[:16]}…, from which its word does not lead on"
        )
    return keys


def check_signature(key: str, signature: str, text: bytes, what: str) -> None:
    """Checks an Ed25519 signature.

    Raises:
        Rejected: `bad-signature`.
    """
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), text)
    except (InvalidSignature, ValueError) as error:
        raise Rejected("bad-signature", f"{what} was not signed by key {key[:16]}…") from error


def _granted(grant: Grant) -> bytes:
    return b"tunefleet token\n" + msgspec.json.encode(grant)


def _claimed(grant: Grant, device_id: str, key: str) -> bytes:
    return f"tunefleet claim\n{grant.fleet}\n{grant.nonce}\n{device_id}\n{key}".encode()


def _rotated(rotation: Rotation) -> bytes:
    return (
        f"tunefleet rotation\n{rotation.fleet}\n{rotation.device_id}\n{rotation.old}\n{rotation.new}".encode()
    )
