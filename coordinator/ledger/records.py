"""What the journal holds, record by record."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from msgspec import Struct

from converters.formats.about import NOTHING, About
from coordinator.strategies.contract import Account, Report
from edge.errors import Rejected
from edge.protocol.messages import Hello, Reason, Telemetry, UpdateHeader
from edge.protocol.signing import Stamp

Status = Literal["accepted", "rejected", "discarded"]
# No receipt bears it: the device was told `accepted` when its update came.
DiscardReason = Reason | Literal["unmergeable"]
# What lets a device in: its owner's word, a token, or the settings, with their list or their open enrolment.
Source = Literal["hand", "token", "settings"]


class Update(NamedTuple):
    """One update."""

    id: str
    device: str
    tier: str
    base_version: int
    attempt: int
    sha256: str
    encoding: str
    size_bytes: int
    num_examples: int
    num_tokens: int
    num_steps: int
    seconds: float
    loss_before: float | None
    loss_after: float | None
    received_at: float  # Unix time
    status: Status  # `discarded`: accepted, and in no version after all; by a rollback, or unmergeable
    reason: DiscardReason | None
    detail: str
    merged_into: int | None  # version; None while it waits in the buffer
    staleness: int | None  # when merged
    weight: float | None  # when merged
    seq: int = 0  # in order of arrival, over all devices
    is_sealed: int = 0  # 1 where its payload is kept as it came, sealed for this coordinator


class Verdict(NamedTuple):
    """What became of an update, to be written down."""

    header: UpdateHeader
    at: float  # Unix time
    rejected: Rejected | None = None
    norm: float | None = None  # of one that counts
    detail: str = ""  # what is to be said of one that counts
    payload: bytes | None = None  # of a small one that counts; None: it lies in a file


class Backlog(NamedTuple):
    """The buffer, in sum."""

    num_updates: int
    num_bytes: int
    num_own: int  # updates of the device that asks


class Refusal(NamedTuple):
    """A message that did not prove whose it is, and says nothing about the update it names."""

    at: float  # Unix time
    device: str
    id: str
    reason: str
    detail: str


class Tally(NamedTuple):
    """All updates of one device together."""

    accepted: int = 0
    rejected: int = 0
    discarded: int = 0
    merged: int = 0
    mean_staleness: float | None = None  # of the merged ones
    weight: float = 0.0
    num_tokens: int = 0  # of the latest
    seconds: float = 0.0  # of the latest


class Device(NamedTuple):
    """One device."""

    device: str
    key: str  # public, hex
    first_seen: float  # Unix time
    last_seen: float
    online: bool = False
    hello: Hello | None = None
    telemetry: Telemetry | None = None  # of the task under way, or the last one
    held: tuple[int, ...] = ()  # versions that it downloaded or trained on last, oldest first
    stamps: Mapping[str, Stamp] = {}  # its latest, by kind of topic
    astray: float | None = None  # when it was at a version that is not here; None: it is not
    num_unlisted: int = 0  # rejected updates that the journal only counts


class Access(NamedTuple):
    """What the owner of a fleet has said of one device, or a token or an old key has."""

    device: str
    key: str  # public, hex; empty: the device was banned before it ever came
    source: Source
    at: float  # Unix time when it was let in, or got this key
    earlier: tuple[str, ...] = ()  # keys that this one has replaced, oldest first
    banned_at: float | None = None  # Unix time; None: it is not


class Spent(NamedTuple):
    """One use of a token."""

    nonce: str
    device: str
    key: str
    at: float  # Unix time


class Carried(Struct, frozen=True, forbid_unknown_fields=True):
    """What of a strategy's state a version keeps beside its adapter, remainder and the devices' accounts."""

    norms: tuple[float, ...] = ()
    moments: dict[str, str] = {}  # by name, to their sha256


class Origin(Struct, frozen=True, forbid_unknown_fields=True):
    """The adapter that version 0 is."""

    format: str  # peft, mlx, gguf or canonical
    name: str  # of the file with its factors, behind the folder's where the adapter is a folder
    sha256: str  # of that file
    about: About = NOTHING  # what it said beside its factors


class Version(NamedTuple):
    """One version."""

    version: int
    parent: int | None
    depth: int  # merges since version 0, along the lineage
    created_at: float  # Unix time
    master: str  # sha256
    remainder: str | None  # sha256
    tiers: Mapping[str, str]  # `r8` to the sha256 of what its devices train on
    report: Report | None  # None: version 0, or a rollback
    kept: bool  # its files are still here
    loss: float | None  # on the coordinator's evaluation data, nats per label
    exact: float | None  # share of examples that are reproduced exactly
    carried: Carried = Carried()
    origin: Origin | None = None  # of version 0, where the fleet began with an adapter

    @property
    def files(self) -> set[str]:
        """The sha256 of every object it refers to."""
        optional = {self.remainder} if self.remainder else set()
        return {self.master, *self.tiers.values(), *self.carried.moments.values()} | optional

    @property
    def is_rollback(self) -> bool:
        """Whether it is an older version made current again."""
        return self.report is None and self.parent is not None


class VersionFiles(NamedTuple):
    """What a version is made of: sha256 of what is on the disk already, and what goes into the journal."""

    master: str
    remainder: str | None
    tiers: Mapping[str, str]
    carried: Carried
    accounts: Mapping[str, Account]
