"""Versions of the global adapter: immutable files known by their sha256, and their lineage in the journal.

    objects/<sha256>   a canonical adapter file: a master, what is dispatched to a rank tier, a remainder, a
                       moment of the server's optimiser; and the sample of the base model that devices prove
                       their quantised copies by

A version's parent is the version it was made from. `rollback` makes a new version of an old one's files
whose parent is the old one: what came between is no ancestor any more. `depth` counts the merges of a
lineage, so a rollback adds none; staleness is the difference of two depths, which is the current version
minus the base version as long as nothing was rolled back.

A rollback brings back all that a strategy carried from the old version: remainder, moments, norms. The
devices' accounts stay as they are, for they count what happened: which updates were taken, and their weight.

Versions that are older than `keep_versions` keep their rows and lose their files, unless a device still
holds them (`coordinator.ledger.retention`).
"""

import hashlib
from collections.abc import Collection, Mapping
from types import MappingProxyType

from converters.adapter import LoraAdapter
from converters.formats.canonical import dump_adapter, parse_adapter
from coordinator.errors import UnknownVersion
from coordinator.ledger.contract import EVERYTHING, Journal, Objects
from coordinator.ledger.records import Carried, Origin, Version, VersionFiles
from coordinator.strategies.contract import Account, Report, State
from edge.protocol.tiers import tier_rank


class VersionStore:
    """The versions of one fleet.

    Args:
        journal: Their lineage.
        objects: Their files.
    """

    def __init__(self, journal: Journal, objects: Objects) -> None:
        self.sketch: str | None = None  # sha256 of the base model's sample, once `keep_sketch` was called
        self.objects = objects
        self._journal = journal

    def current(self) -> Version | None:
        """Returns the newest version; None in a fresh folder."""
        return next(iter(self._journal.versions(1)), None)

    def version(self, number: int) -> Version:
        """Returns one version.

        Raises:
            UnknownVersion: It was never made.
        """
        found = self._journal.version(number)
        if found is None:
            newest = self.current()
            last = f"the newest is {newest.version}" if newest else "there is none yet"
            raise UnknownVersion(f"version {number} was never made: {last}")
        return found

    def history(self, limit: int = EVERYTHING) -> list[Version]:
        """Returns the latest versions, oldest first."""
        return self._journal.versions(limit)[::-1]

    def lineage(self, number: int) -> dict[int, int]:
        """Returns a version and all its ancestors, each with its depth."""
        return self._journal.lineage(number)

    def kept(self) -> list[Version]:
        """Returns the versions whose files are here, oldest first."""
        return self._journal.kept()

    def accounts(self) -> dict[str, Account]:
        """Returns what every device that was in a version has had of them."""
        return self._journal.accounts()

    def load(self, sha256: str) -> LoraAdapter:
        """Reads an object as an adapter.

        Raises:
            MissingObject: It is not here, or no longer.
            AdapterError: It is damaged.
        """
        return parse_adapter(self.objects.get(sha256), where=sha256)

    def state(self, version: Version, accounts: Mapping[str, Account] = MappingProxyType({})) -> State:
        """Reads what a strategy begins from, without the journal, so that a thread may.

        Args:
            version: Any that is kept.
            accounts: The present ones.

        Raises:
            UnknownVersion: Its files are no longer kept.
        """
        _check_kept(version)
        return State(
            version=version.version,
            adapter=self.load(version.master),
            remainder=self.load(version.remainder) if version.remainder else None,
            moments={name: self.load(sha256) for name, sha256 in version.carried.moments.items()},
            accounts=accounts,
            norms=version.carried.norms,
        )

    def whole(self, version: Version) -> LoraAdapter:
        """Reads what the version is to those who use it: as devices of the fleet's own rank compute with it.

        It is the master; where a strategy carries a residual for devices (FedEx-LoRA), with it behind.

        Raises:
            UnknownVersion: Its files are no longer kept.
        """
        _check_kept(version)
        if version.remainder is None:
            return self.load(version.master)
        return self.load(version.tiers[max(version.tiers, key=tier_rank)])

    def store(self, state: State, tiers: Mapping[str, LoraAdapter]) -> VersionFiles:
        """Writes a version's files; nothing refers to them until `add`.

        Raises:
            DiskRefused: Some may be written; `collect` removes them.
        """
        return VersionFiles(
            master=self._put(state.adapter),
            remainder=self._put(state.remainder) if state.remainder else None,
            tiers={name: self._put(tier) for name, tier in tiers.items()},
            carried=Carried(state.norms, {name: self._put(moment) for name, moment in state.moments.items()}),
            accounts=state.accounts,
        )

    def add(
        self,
        files: VersionFiles,
        parent: int | None,
        report: Report | None,
        at: float,
        origin: Origin | None = None,
    ) -> Version | None:
        """Makes a version current, and takes the updates it holds out of the buffer, in one step.

        Returns:
            None, and nothing is changed, if `parent` is not the newest version any more: somebody rolled
            back.

        Raises:
            DiskRefused: Nothing is changed.
        """
        old = self.current()
        if (old.version if old else None) != parent:
            return None
        made = Version(
            version=old.version + 1 if old else 0,
            parent=parent,
            depth=old.depth + 1 if old else 0,
            created_at=at,
            master=files.master,
            remainder=files.remainder,
            tiers=files.tiers,
            report=report,
            kept=True,
            loss=None,
            exact=None,
            carried=files.carried,
            origin=origin,
        )
        return made if self._journal.commit(made, files.accounts) else None

    def rollback(self, to: int, at: float) -> Version:
        """Makes an older version's files current again, under a new number.

        Updates in the buffer whose base version is no ancestor any more are discarded.

        Raises:
            UnknownVersion: It was never made, or its files are no longer kept.
        """
        while True:  # until nobody else made a version in between
            old, newest = self.version(to), self.current()
            if not old.kept or newest is None:
                raise UnknownVersion(f"version {to} is no longer kept, only its row; see keep_versions")
            number = newest.version + 1
            made = old._replace(version=number, parent=to, created_at=at, report=None, origin=None)
            if self._journal.commit(made, {}):
                return made

    def score(self, number: int, loss: float, exact: float) -> None:
        """Writes down how good a version is."""
        self._journal.score(number, loss, exact)

    def keep_sketch(self, sketch: bytes) -> None:
        """Keeps the sample of the base model beside the versions.

        Raises:
            DiskRefused: There is no room.
        """
        self.sketch = self._put_bytes(sketch)

    def collect(self, keep_versions: int, held: Collection[int] = ()) -> None:
        """Removes the files of old versions, and files that no version refers to.

        Args:
            keep_versions: The newest so many stay.
            held: Older versions that stay as well, where they still have their files.
        """
        kept = [one.version for one in self.kept()]
        lost = [one for one in kept if one <= max(kept) - keep_versions and one not in held]
        self._journal.forget(lost)
        referred = {sha256 for one in self.kept() for sha256 in one.files} | {self.sketch}
        self.objects.remove(self.objects.names() - referred)

    def _put(self, adapter: LoraAdapter) -> str:
        return self._put_bytes(dump_adapter(adapter))

    def _put_bytes(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        self.objects.put(sha256, content)
        return sha256


def _check_kept(version: Version) -> None:
    if not version.kept:
        raise UnknownVersion(f"version {version.version} is no longer kept; see keep_versions")
