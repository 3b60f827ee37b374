"""Every message of wire version 2, as it stands in JSON.

Control messages are JSON, which `tunefleet watch` shows; tensors travel as safetensors in chunks
(`edge.protocol.chunks`), each with its proof. All go inside `Signed`, which proves whose they are. Unknown
fields are refused: a newer wire bears another number in its topics.
Field names are the wire: golden bytes in the tests hold them still.
"""

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from converters.choices import Trains
from converters.files.text import decode_record
from edge.choices import BATCH_TOKENS, CLIP_NORM, LR, SEQ_TOKENS
from edge.choices import EncodingName as EncodingName
from edge.choices import Space as Space
from edge.errors import ProtocolError
from edge.privacy.terms import NO_TERMS, Terms

MAX_MESSAGE_BYTES = 64 * 1024  # of a control message: before it is looked into
MAX_RANGES = 256
MAX_DETAIL = 2000
MOST_NONCES = 256  # that one answer is to

Id = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?\Z")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
UpdateId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Nonce = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
HostName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,64}\Z")]  # it is shown on other people's terminals
Count = Annotated[int, Meta(ge=0, le=2**53)]
SizeBytes = Annotated[int, Meta(ge=0, le=1 << 40)]
Seconds = Annotated[float, Meta(ge=0)]
Name = Annotated[str, Meta(max_length=64)]
Detail = Annotated[str, Meta(max_length=MAX_DETAIL)]
Range = tuple[Count, Count]  # first chunk, and the one after the last
ChunkBytes = Annotated[int, Meta(ge=1024, le=1 << 20)]
Ranges = Annotated[tuple[Range, ...], Meta(max_length=MAX_RANGES)]
WINDOW = 16  # chunks that are asked for, or under way, at a time

Reason = Literal[
    "malformed",  # not a message, or not safetensors of the promised form
    "too-large",
    "unknown-device",  # its key is not enrolled
    "banned",  # its owner has shut it out
    "bad-signature",
    "hash-mismatch",
    "foreign-base",  # another base model
    "unknown-version",  # never published, or no longer kept
    "rolled-back",  # its base version is not an ancestor of the current one
    "too-stale",
    "wrong-shape",
    "not-finite",
    "norm-too-large",
    "too-many-attempts",  # more than the recipe has of a version
    "attempt-taken",  # another update of this device for the same attempt at the version counts already
    "unsealable",  # sealed for another coordinator's key or as another update, or changed since
]


class Record(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Root of all wire records."""


class Presence(Record, frozen=True):
    """Topics `coordinator` and `device/<id>/state`: retained; the will says offline.

    Both are signed at each connection, the will right after the birth: a late will of an earlier connection
    is older than the present one's birth, and is ignored.
    """

    online: bool


class Challenge(Record, frozen=True):
    """Topics `coordinator/challenge`, `device/<id>/challenge`: whoever lives under this name is to say so.

    Anybody is answered; its own key's signature tells whoever lives that a copy of it asks.
    """

    nonce: Nonce
    session: Nonce  # of the asking process, which does not answer itself
    host: HostName


class Answer(Record, frozen=True):
    """Topics `coordinator/answer`, `device/<id>/answer`: who lives there, to all who asked a moment ago."""

    fleet: Id
    nonces: Annotated[tuple[Nonce, ...], Meta(max_length=MOST_NONCES)]  # of the challenges
    session: Nonce  # drawn by each process anew: two that run from copies of one state folder share their key
    epoch: Count
    version: Count  # the coordinator's current one; 0 of a device
    since: Annotated[float, Meta(ge=0, le=1e11)]  # Unix time
    host: HostName


class Recipe(Record, frozen=True):
    """How devices are to train on a version.

    A device that `keeps` its own b (FedSA-LoRA, arXiv 2410.01463) begins each task with the dispatched a and
    the b of its last task, and sends what a has moved by.
    """

    steps: Count  # optimizer steps of one task; 0 leaves it to `seconds`
    seconds: Seconds = 0.0
    lr: float = LR
    weight_decay: float = 0.0
    clip_norm: float = CLIP_NORM
    seq_tokens: Count = SEQ_TOKENS
    batch_tokens: Count = BATCH_TOKENS
    attempts: Count = 1  # tasks a device may do on one version; 0 is no bound
    pull: Annotated[float, Meta(ge=0)] = 0.0  # towards the dispatched features: `TrainableModel.begin`
    trains: Trains = "both"  # what is not trained stays as dispatched, and is not sent
    train_rank: Count = 0  # only the first rows of a and columns of b are trained; 0: all
    keeps: Literal["none", "b"] = "none"


class Blob(Record, frozen=True):
    """A file that the coordinator serves in the manifest's chunks."""

    sha256: Sha256
    root: Sha256  # of the Merkle tree over its chunks (`edge.protocol.merkle`)
    size_bytes: SizeBytes


class Manifest(Record, frozen=True, omit_defaults=True):
    """Topic `version/<tier>`, retained, inside `Signed`: the current version for a rank tier.

    Of two, the one of the later epoch counts, and in one epoch the one of the higher version: a coordinator
    whose state was restored may go back, and a manifest that somebody has kept and sends again may not.
    """

    fleet: Id
    tier: Id  # `r8`: adapters of rank 8
    version: Count
    parent: Count | None
    sha256: Sha256  # of the blob: an adapter as safetensors
    root: Sha256  # of the Merkle tree over its chunks
    size_bytes: SizeBytes
    chunk_bytes: ChunkBytes
    encoding: EncodingName  # of updates
    base: Sha256  # fingerprint of the base model
    rank: Count
    space: Space
    recipe: Recipe
    sketch: Blob | None = None  # a sample of the base model, to prove a quantised copy by
    epoch: Count = 0  # of the coordinator's session, always later than any before; 0: it tells none
    privacy: Terms = NO_TERMS  # how an update is made private
    seal: Sha256 | None = None  # the key that updates are sealed for; None: this fleet does not seal them
    known: Count = 0  # the latest `seq` of its journal when the session began; what is beyond it is forgotten


class Hello(Record, frozen=True):
    """Topic `device/<id>/hello`, retained, inside `Signed`: a device's capability card."""

    device_id: Id
    backend: Name
    ranks: Annotated[tuple[Count, ...], Meta(max_length=64)]  # tiers it can train, largest first
    encodings: Annotated[tuple[EncodingName, ...], Meta(max_length=16)]
    memory_bytes: Count
    tokens_per_s: float | None  # measured, None before the first task
    base: Sha256


class Want(Record, frozen=True):
    """Topic `device/<id>/want`, inside `Signed`: chunks of a blob that are still missing here."""

    sha256: Sha256
    ranges: Ranges
    window: Annotated[int, Meta(ge=1, le=WINDOW)]  # how many chunks the device takes now


class UpdateHeader(Record, frozen=True, omit_defaults=True):
    """Topic `device/<id>/up/<update>/header`, inside `Signed`, before the update's chunks."""

    update: UpdateId  # `edge.protocol.delta.update_id`
    fleet: Id
    device_id: Id
    tier: Id
    base_version: Count
    base: Sha256
    attempt: Count
    sha256: Sha256  # of the payload
    root: Sha256  # of the Merkle tree over its chunks
    size_bytes: SizeBytes
    chunk_bytes: ChunkBytes
    encoding: EncodingName
    num_examples: Count = 0  # trained on, repetitions counted
    num_tokens: Count = 0
    num_steps: Count = 0
    seconds: Seconds = 0.0
    loss_before: float | None = None  # first and last step's training loss
    loss_after: float | None = None
    base_sha256: Sha256 | None = None  # of the base version's blob; None where the manifest had no epoch
    is_sealed: bool = False  # the payload is, and its facts are in it (`edge.protocol.sealing`)


class Facts(Record, frozen=True):
    """What an update tells of its training: in its header, or sealed in its payload.

    Of a training with privacy nothing is told that the data decides, but for the time it took.
    """

    num_examples: Count
    num_tokens: Count
    num_steps: Count
    seconds: Seconds
    loss_before: float | None = None
    loss_after: float | None = None


class Receipt(Record, frozen=True):
    """Topic `device/<id>/receipt`, inside `Signed`: what became of an update.

    `accepted` and `rejected` are final, and mean that the journal knows; `missing` names the chunks that the
    coordinator still waits for. `busy` is no verdict: there is no room now, and the device keeps its update
    and asks again later. A number is told to devices that name their base's blob.
    """

    update: UpdateId
    header: Sha256  # of the header's body as the device signed it: about other bytes nothing is said
    status: Literal["accepted", "rejected", "missing", "busy"]
    reason: Reason | None = None
    detail: Detail = ""
    missing: Ranges = ()
    seq: Count | UnsetType = UNSET  # of the verdict in the coordinator's journal, which counts on


class Telemetry(Record, frozen=True):
    """Topic `device/<id>/telemetry`, inside `Signed`: progress of the task under way."""

    base_version: Count
    step: Count
    steps: Count  # 0: bounded by time
    loss: float | None  # None where the fleet seals or hides what is learnt
    tokens_per_s: float
    memory_bytes: Count


class Signed(Record, frozen=True):
    """A message and its Ed25519 signature over topic, epoch, count and body (`edge.protocol.signing`)."""

    body: msgspec.Raw
    key: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]  # public key of the signer
    signature: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]
    epoch: Count  # of the signer's session: ms, later than any before
    count: Count  # rises with every message of the session


R = TypeVar("R", bound=Struct)


def is_id(text: str) -> bool:
    """Tells whether a fleet, a device or a tier may have this name."""
    try:
        msgspec.convert(text, Id)
    except msgspec.ValidationError:
        return False
    return True


def encode_message(message: Struct) -> bytes:
    """Encodes a message as JSON, fields in the order of their declaration."""
    return msgspec.json.encode(message)


def decode_message(payload: bytes, kind: type[R]) -> R:
    """Returns the record of `kind` in `payload`.

    Raises:
        ProtocolError: Naming the field and what was expected.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"{kind.__name__}: {len(payload)} bytes, expected at most {MAX_MESSAGE_BYTES}")
    return decode_record(payload, kind, lambda why: ProtocolError(f"{kind.__name__}: {why}"))
