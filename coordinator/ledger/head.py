"""Where a fleet stands: its current version, and what that means for updates and downloads.

`Head` has one owner, the server, which moves it at every new version. Everybody else reads: `standing` is
replaced and never changed, so whoever keeps one for a while (a payload's check, a merge) keeps it whole.
"""

from collections.abc import Mapping
from typing import NamedTuple

from converters.adapter import LoraAdapter
from converters.masking import leading_rows
from coordinator.ledger.records import Version
from coordinator.ledger.versions import VersionStore


class Standing(NamedTuple):
    """Where the fleet stands."""

    version: int
    lineage: Mapping[int, int]  # the current version and its ancestors, each with its depth
    kept: Mapping[int, Mapping[str, str]]  # the versions whose files are here: tier to sha256
    tiers: Mapping[str, LoraAdapter]  # what each rank tier trains on now: names and shapes of every version's

    def staleness(self, base_version: int) -> int:
        """Returns the versions along the lineage between `base_version`, an ancestor, and the current one."""
        return self.lineage[self.version] - self.lineage[base_version]

    def newest_with(self, sha256: str) -> int | None:
        """Returns the newest version that serves these bytes; None where none that is here does."""
        return max((number for number, tiers in self.kept.items() if sha256 in tiers.values()), default=None)


class Head:
    """The current version.

    Args:
        versions: The fleet's versions.
        version: The current one.
        train_ranks: Each tier's name, to the rows of its adapters that devices train; 0 is all.

    Attributes:
        version: The current version.
        standing: What follows from it.
    """

    def __init__(self, versions: VersionStore, version: Version, train_ranks: Mapping[str, int]) -> None:
        self._versions = versions
        self._train_ranks = train_ranks
        self.move(version)

    def move(self, version: Version) -> None:
        """Makes `version` the current one."""
        versions = self._versions
        tiers = {
            tier: leading_rows(versions.load(version.tiers[tier]), train_rank)
            for tier, train_rank in self._train_ranks.items()
        }
        kept = {one.version: one.tiers for one in versions.kept()}
        self.version = version
        self.standing = Standing(version.version, versions.lineage(version.version), kept, tiers)
