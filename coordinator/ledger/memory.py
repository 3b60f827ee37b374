"""A journal and blobs that are forgotten with the process: for research and tests."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from coordinator.ledger.contract import EVERYTHING, MAX_REFUSALS, check_facts
from coordinator.ledger.records import Device, DiscardReason, Refusal, Tally, Update, Version, new_update
from coordinator.strategies.contract import Account
from edge.errors import MissingObject, Rejected
from edge.protocol.messages import UpdateHeader


class MemoryJournal:
    """A `Journal` of one process, which no other changes."""

    def __init__(self) -> None:
        self._facts: dict[str, str] = {}
        self._updates: dict[str, Update] = {}  # by id, in order of arrival
        self._refusals: list[Refusal] = []
        self._devices: dict[str, Device] = {}
        self._versions: list[Version] = []  # each at the place of its number
        self._accounts: dict[str, Account] = {}

    def close(self) -> None:
        """See `Journal`."""

    def meta(self, key: str) -> str | None:
        """See `Facts`."""
        return self._facts.get(key)

    def note(self, key: str, value: str | None) -> None:
        """See `Facts`."""
        self._facts.pop(key, None)
        if value is not None:
            self._facts[key] = value

    def agree(self, facts: Mapping[str, str]) -> None:
        """See `Facts`."""
        check_facts("journal", {key: self.meta(key) for key in facts}, facts)
        self._facts |= facts

    def data_version(self) -> int:
        """See `Facts`."""
        return 0

    def record(self, header: UpdateHeader, at: float, rejected: Rejected | None = None) -> int:
        """See `Updates`."""
        fresh = new_update(header, at, rejected)._replace(seq=self.last_seq() + 1)
        return self._updates.setdefault(header.update, fresh).seq

    def update(self, update_id: str) -> Update | None:
        """See `Updates`."""
        return self._updates.get(update_id)

    def waiting(self) -> list[Update]:
        """See `Updates`."""
        return [one for one in self._updates.values() if one.status == "accepted" and one.merged_into is None]

    def updates(self, limit: int = 1000) -> list[Update]:
        """See `Updates`."""
        return list(self._updates.values())[::-1][:limit]

    def last_seq(self) -> int:
        """See `Updates`."""
        return len(self._updates)

    def discard(self, updates: Sequence[str], reason: DiscardReason, detail: str) -> None:
        """See `Updates`."""
        for name in updates:
            gone = self._updates[name]._replace(status="discarded", reason=reason, detail=detail)
            self._updates[name] = gone

    def is_stranded(self, version: int) -> bool:
        """See `Updates`."""
        gone = (one for one in self._updates.values() if one.status == "discarded")
        return any(one.base_version == version for one in gone)

    def tallies(self) -> dict[str, Tally]:
        """See `Updates`."""
        devices = dict.fromkeys(one.device for one in self._updates.values())
        return {
            name: _tally([one for one in self._updates.values() if one.device == name]) for name in devices
        }

    def refuse(self, refusal: Refusal) -> None:
        """See `Updates`."""
        self._refusals = [*self._refusals, refusal][-MAX_REFUSALS:]

    def refusals(self, limit: int = 100) -> list[Refusal]:
        """See `Updates`."""
        return self._refusals[::-1][:limit]

    def enrol(self, device: Device) -> None:
        """See `Devices`."""
        self._devices[device.device] = device

    def devices(self) -> list[Device]:
        """See `Devices`."""
        return [self._devices[name] for name in sorted(self._devices)]

    def save(self, devices: Iterable[Device]) -> None:
        """See `Devices`."""
        self._devices |= {one.device: one for one in devices}

    def commit(self, version: Version, accounts: Mapping[str, Account]) -> bool:
        """See `Lineage`."""
        old = self.version(version.parent) if version.is_rollback and version.parent is not None else None
        if version.version != len(self._versions) or (version.is_rollback and not (old and old.kept)):
            return False
        self._versions.append(version)
        self._accounts |= accounts
        for share in version.report.shares if version.report else ():
            self._updates[share.update] = self._updates[share.update]._replace(
                merged_into=version.version, staleness=share.staleness, weight=share.weight
            )
        if version.is_rollback:
            line = self.lineage(version.version)
            gone = [one.id for one in self.waiting() if one.base_version not in line]
            self.discard(gone, "rolled-back", f"version {version.version} went back to {version.parent}")
        return True

    def version(self, number: int) -> Version | None:
        """See `Lineage`."""
        return self._versions[number] if 0 <= number < len(self._versions) else None

    def versions(self, limit: int = EVERYTHING) -> list[Version]:
        """See `Lineage`."""
        return self._versions[::-1][:limit]

    def kept(self) -> list[Version]:
        """See `Lineage`."""
        return [one for one in self._versions if one.kept]

    def lineage(self, number: int) -> dict[int, int]:
        """See `Lineage`."""
        found: dict[int, int] = {}
        one = self.version(number)
        while one is not None:
            found[one.version] = one.depth
            one = self.version(one.parent) if one.parent is not None else None
        return found

    def score(self, number: int, loss: float, exact: float) -> None:
        """See `Lineage`."""
        self._versions[number] = self._versions[number]._replace(loss=loss, exact=exact)

    def forget(self, numbers: Collection[int]) -> None:
        """See `Lineage`."""
        for number in numbers:
            self._versions[number] = self._versions[number]._replace(kept=False)

    def accounts(self) -> dict[str, Account]:
        """See `Lineage`."""
        return dict(self._accounts)


def _tally(updates: Sequence[Update]) -> Tally:
    merged = [one for one in updates if one.merged_into is not None]
    counts = Counter(one.status for one in updates)
    return Tally(
        accepted=counts["accepted"],
        rejected=counts["rejected"],
        discarded=counts["discarded"],
        merged=len(merged),
        mean_staleness=sum(one.staleness or 0 for one in merged) / len(merged) if merged else None,
        weight=sum(abs(one.weight or 0.0) for one in updates),
        num_tokens=updates[-1].num_tokens,
        seconds=updates[-1].seconds,
    )


class MemoryObjects:
    """`Objects` in memory."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    def put(self, name: str, content: bytes) -> None:
        """See `Objects`."""
        self._blobs.setdefault(name, content)

    def get(self, name: str, start: int = 0, length: int = -1) -> bytes:
        """See `Objects`."""
        blob = self._find(name)
        return blob[start:] if length < 0 else blob[start : start + length]

    def size(self, name: str) -> int:
        """See `Objects`."""
        return len(self._find(name))

    def names(self) -> set[str]:
        """See `Objects`."""
        return set(self._blobs)

    def remove(self, names: Iterable[str]) -> None:
        """See `Objects`."""
        for name in names:
            self._blobs.pop(name, None)

    def _find(self, name: str) -> bytes:
        try:
            return self._blobs[name]
        except KeyError as error:
            raise MissingObject(f"{name}: is gone") from error
