"""What the fleet of a demo did, as the coordinator's journal tells it."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from coordinator.demo.plan import DemoPlan
from coordinator.demo.result import UpdatePoint, VersionPoint
from coordinator.ledger.contract import EVERYTHING
from coordinator.ledger.records import Update, Version
from coordinator.ledger.sqlite import FILE
from coordinator.ledger.state import open_ledger


class FleetRecord(NamedTuple):
    """What the journal holds."""

    versions: list[Version]  # oldest first
    updates: list[Update]  # oldest first

    @property
    def merged(self) -> list[Update]:
        """The updates that are in a version."""
        return [update for update in self.updates if update.merged_into is not None]

    @property
    def accepted(self) -> Counter[str]:
        """By device the number of its updates, merged or waiting."""
        return Counter(update.device for update in self.updates if update.status == "accepted")

    def own(self, device_id: str) -> list[Update]:
        """Returns a device's merged updates."""
        return [update for update in self.merged if update.device == device_id]

    def num_steps(self, device_id: str) -> int:
        """Counts the optimizer steps behind a device's merged updates."""
        return sum(update.num_steps for update in self.own(device_id))

    def version_points(self) -> list[VersionPoint]:
        """Returns all versions, with the time since version 0."""
        start = self.versions[0].created_at if self.versions else 0.0
        return [
            VersionPoint(
                version=version.version,
                seconds=version.created_at - start,
                loss=version.loss,
                exact=version.exact,
            )
            for version in self.versions
        ]

    def update_points(self) -> list[UpdatePoint]:
        """Returns the merged updates that have a loss, with the time since version 0."""
        start = self.versions[0].created_at
        return [
            UpdatePoint(
                device_id=update.device,
                seconds=update.received_at - start,
                staleness=update.staleness or 0,
                loss=update.loss_before,
            )
            for update in self.merged
            if update.loss_before is not None
        ]


def read_record(state: Path) -> FleetRecord:
    """Reads all versions and updates from a coordinator's journal; none where it has not begun one."""
    if not (state / FILE).is_file():
        return FleetRecord([], [])
    with open_ledger(state) as (journal, versions):
        return FleetRecord(versions.history(), journal.updates(EVERYTHING)[::-1])


def is_done(record: FleetRecord, plan: DemoPlan) -> bool:
    """Returns whether every device has its share, and the fleet has learnt its task or made all versions."""
    is_shared = all(len(record.own(name)) >= plan.min_updates for name in plan.device_ids)
    latest = [version.exact for version in record.versions if version.exact is not None][-plan.num_steady :]
    has_learnt = len(latest) == plan.num_steady and min(latest) >= plan.enough
    return is_shared and (has_learnt or len(record.versions) > plan.num_versions)
