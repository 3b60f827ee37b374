"""What a coordinator's memory must do, whatever keeps it: a journal of what happened, and blobs.

The journal is five small contracts in one; who needs only devices, or only facts, asks for no more. What it
has taken is kept over a kill before a call returns, every call is all or nothing, and other processes
(`status`, `rollback`) may read and write at the same time. An update's id stands in it at most once, and
what was accepted stays in the buffer until the version that holds it is committed in the same step.

Every method raises `StateError` where the journal is damaged, and `DiskRefused` where the disk says no (there
is no room, it fails, another process holds the journal's lock): nothing is changed then, and no receipt may
be sent.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from coordinator.ledger.records import (
    Access,
    Backlog,
    Device,
    DiscardReason,
    Refusal,
    Spent,
    Tally,
    Update,
    Verdict,
    Version,
)
from coordinator.strategies.contract import Account
from edge.errors import Rejected
from edge.protocol.messages import UpdateHeader

MAX_REFUSALS = 1000  # kept, newest: strangers must not fill the disk
EVERYTHING = 1 << 30


class Facts(Protocol):
    """Facts about the whole state folder, such as the base model's fingerprint."""

    def meta(self, key: str) -> str | None:
        """Returns a fact."""

    def note(self, key: str, value: str | None) -> None:
        """Writes down a fact that changes, such as how far the next version is; None takes it out."""

    def agree(self, facts: Mapping[str, str]) -> None:
        """Writes down facts that must never change; raises `StateError` naming each that differs."""

    def data_version(self) -> int:
        """Returns a number that changes when another process has changed the journal."""
        ...


class Updates(Protocol):
    """Every update once, and what proved to be nobody's."""

    def record(
        self,
        header: UpdateHeader,
        at: float,
        rejected: Rejected | None = None,
        norm: float | None = None,
        detail: str = "",
    ) -> int:
        """Writes an update down, where it is not there already, and returns its `seq`.

        Args:
            header: The update's.
            at: Unix time.
            rejected: Why it does not count.
            norm: Of one that counts.
            detail: What is to be said of one that counts.
        """
        ...

    def record_all(self, verdicts: Sequence[Verdict]) -> list[int]:
        """Writes many down in one step, which costs the disk no more than one; returns the `seq` of each."""
        ...

    def update(self, update_id: str) -> Update | None:
        """Returns the update of that id, or None where the journal has never heard of it."""

    def waiting(self) -> list[Update]:
        """Returns the buffer: accepted and in no version yet, in order of arrival."""
        ...

    def backlog(self, device: str) -> Backlog:
        """Returns how much is in the buffer, and how much of it is a device's."""
        ...

    def counted(self, device: str, base_version: int, attempt: int) -> str | None:
        """Returns the id of the update that was accepted for a device's attempt at a version, if one was."""

    def norms(self, since: int, limit: int) -> list[tuple[str, int, float]]:
        """Returns device, rank and norm of the latest updates accepted after a `seq`, oldest first."""
        ...

    def delivered(self) -> set[str]:
        """Returns the devices that ever had an update accepted."""
        ...

    def updates(self, limit: int = 1000) -> list[Update]:
        """Returns the latest updates, newest first."""
        ...

    def last_seq(self) -> int:
        """Returns the number of the latest update; 0 where there is none."""
        ...

    def discard(self, updates: Sequence[str], reason: DiscardReason, detail: str) -> None:
        """Takes accepted updates out of the buffer for good."""

    def is_stranded(self, version: int) -> bool:
        """Tells whether an update on `version` was accepted and lost, so that its device waits."""
        ...

    def tallies(self) -> dict[str, Tally]:
        """Returns how the updates of every device fared."""
        ...

    def refuse(self, refusal: Refusal) -> None:
        """Writes down a message that proved nobody's; only the latest `MAX_REFUSALS` are kept."""

    def refusals(self, limit: int = 100) -> list[Refusal]:
        """Returns the latest messages that were refused, newest first."""
        ...


class Payloads(Protocol):
    """Payloads that were written down with their updates, because they are small."""

    def payload(self, update_id: str) -> bytes | None:
        """Returns one, where it is here."""

    def payloads(self) -> set[str]:
        """Returns the ids of all that are here."""
        ...

    def drop(self, updates: Collection[str]) -> None:
        """Forgets some; their updates stay."""


class Devices(Protocol):
    """Every device that ever enrolled."""

    def enrol(self, device: Device) -> None:
        """Writes a new device down; after a power cut it comes again, where nothing of it counts yet."""

    def devices(self) -> list[Device]:
        """Returns all devices, by name."""
        ...

    def exchange(self, gone: Iterable[str], new: Iterable[Device]) -> None:
        """Forgets devices and their keys, whose updates stay, and writes new ones down, in one step."""

    def save(self, devices: Iterable[Device]) -> None:
        """Writes down what changed of devices; their keys never do."""


class Lineage(Protocol):
    """Every version, how it came about, and what devices have had of them."""

    def commit(self, version: Version, accounts: Mapping[str, Account]) -> bool:
        """Makes a version current, and returns whether it did, in one step with what it means for the buffer.

        Updates in its report leave the buffer; a rollback discards those whose base is no ancestor any more.
        Nothing is changed if its number is not the next one, it goes back to files that were forgotten, or an
        update in its report was discarded meanwhile.
        """
        ...

    def version(self, number: int) -> Version | None:
        """Returns a version, or None where it was never made."""

    def versions(self, limit: int = EVERYTHING) -> list[Version]:
        """Returns the latest versions, newest first."""
        ...

    def kept(self) -> list[Version]:
        """Returns the versions whose files are here, oldest first."""
        ...

    def lineage(self, number: int) -> dict[int, int]:
        """Returns a version and all its ancestors, each with its depth."""
        ...

    def score(self, number: int, loss: float, exact: float) -> None:
        """Writes down how good a version is."""

    def forget(self, numbers: Collection[int]) -> None:
        """Writes down that the files of these versions are no longer kept."""

    def accounts(self) -> dict[str, Account]:
        """Returns what every device that was in a version has had of them."""
        ...


class AccessRecords(Protocol):
    """Who may speak for which device, as far as the fleet's settings do not say it."""

    def generation(self) -> int:
        """Returns a number that rises with every change that decides who may speak."""
        ...

    def all(self) -> list[Access]:
        """Returns what was said of every device, by name."""
        ...

    def find(self, device: str) -> Access | None:
        """Returns what was said of a device."""

    def allow(self, devices: Mapping[str, str], at: float) -> None:
        """Lets devices in, each with its key; all or, where another key is known of one, none.

        Raises `StateError`.
        """

    def ban(self, device: str, at: float, keeps_updates: bool = False) -> int:
        """Shuts a device and its key out, with its updates that wait to be merged; returns how many."""
        ...

    def discard_late(self) -> int:
        """Discards what was accepted of devices after their ban, being on its way; returns how many."""
        ...

    def unban(self, device: str) -> bool:
        """Lets a device in again as it was before; returns whether it was banned."""
        ...

    def forget(self, device: str) -> bool:
        """Takes a device out, key and card; what it did stays. Returns whether it was known.

        Raises `StateError` where it is banned.
        """
        ...

    def forgotten(self) -> list[str]:
        """Returns the forgotten devices of which the broker may still retain a card."""
        ...

    def clear(self, devices: Iterable[str]) -> None:
        """Notes that the broker retains nothing of these devices any more."""

    def pin(self, device: str, key: str) -> None:
        """Writes down the key of a device whose list says another than before."""

    def rotate(self, device: str, keys: Sequence[str], at: float) -> None:
        """Gives a device the last of `keys`, which follow from the first, the one that is pinned."""

    def spend(self, use: Spent, most: int) -> bool:
        """Lets a device in by a token that was used fewer than `most` times, or by this device and key."""
        ...

    def spent(self, nonce: str) -> list[Spent]:
        """Returns the uses of a token, in order."""
        ...


class Journal(Facts, Updates, Payloads, Devices, Lineage, Protocol):
    """What happened."""

    def hurry(self) -> None:
        """Waits for no other process from now on: whoever runs an event loop comes again instead."""

    @property
    def access(self) -> AccessRecords:
        """Who may speak."""
        ...


class Objects(Protocol):
    """Blobs that never change: a version's files under their sha256, payloads under their update's id.

    Every method raises `DiskRefused` where the disk says no.
    """

    def put(self, name: str, content: bytes) -> None:
        """Keeps a blob; what is there under that name stays."""

    def get(self, name: str, start: int = 0, length: int = -1) -> bytes:
        """Returns a blob, or `length` bytes of it; raises `MissingObject`."""
        ...

    def size(self, name: str) -> int:
        """Returns a blob's size in bytes; raises `MissingObject`."""
        ...

    def names(self) -> set[str]:
        """Returns the names of all blobs."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Removes blobs, where they are."""
