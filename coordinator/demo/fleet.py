"""The fleet's part of the demo: broker, coordinator and devices run, and the journal tells what they did."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from coordinator.demo.files import Paths, write_configs
from coordinator.demo.plan import DemoPlan
from coordinator.demo.processes import Children
from coordinator.demo.result import UpdatePoint, VersionPoint
from coordinator.demo.screen import Screen
from coordinator.errors import CoordinatorError
from coordinator.journal import FILE, Journal, Update
from coordinator.versions import Version, VersionStore
from edge.transport.broker import EmbeddedBroker

POLL_S = 0.3
COORDINATOR = "coordinator"


class FleetRecord(NamedTuple):
    """What the journal holds."""

    versions: list[Version]  # oldest first
    updates: list[Update]  # those that were merged, oldest first

    def own(self, device_id: str) -> list[Update]:
        """A device's merged updates."""
        return [update for update in self.updates if update.device == device_id]

    def num_steps(self, device_id: str) -> int:
        """Optimizer steps behind a device's merged updates."""
        return sum(update.num_steps for update in self.own(device_id))

    def version_points(self) -> list[VersionPoint]:
        """Versions against the time since version 0."""
        start = self.versions[0].created_at
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
        """Merged updates against the time since version 0."""
        start = self.versions[0].created_at
        return [
            UpdatePoint(
                device_id=update.device,
                seconds=update.received_at - start,
                staleness=update.staleness or 0,
                loss=update.loss_before,
            )
            for update in self.updates
            if update.loss_before is not None
        ]


def read_record(state: Path) -> FleetRecord:
    """All versions and merged updates of a coordinator's journal."""
    with closing(Journal(state)) as journal:
        versions = sorted(VersionStore(state, journal).history(), key=lambda version: version.version)
        updates = [update for update in journal.updates(1 << 30) if update.merged_into is not None]
    return FleetRecord(versions, updates[::-1])


async def run_fleet(children: Children, paths: Paths, plan: DemoPlan, screen: Screen) -> FleetRecord:
    """Runs until the versions are made or the time is over.

    Raises:
        ChildFailed: A process ended that should not have.
        CoordinatorError: No version was made.
    """
    screen.stage("A broker, a coordinator and four devices", total=plan.num_versions)
    devices = [member.home.device_id for member in plan.members]
    async with EmbeddedBroker() as broker:
        write_configs(paths, plan, broker.url)
        await children.start(COORDINATOR, ["serve", "--config", str(paths.config(COORDINATOR))])
        for name in devices:
            await children.start(name, ["join", "--config", str(paths.config(name))])
        await _watch(children, devices, paths, plan, screen)
        await asyncio.gather(*(children.stop(name) for name in [*devices, COORDINATOR]))
    record = read_record(paths.state)
    if not record.updates:
        raise CoordinatorError(f"the fleet made no version in {plan.fleet_seconds:.0f} s; see {paths.logs}")
    return record


async def _watch(
    children: Children, devices: Sequence[str], paths: Paths, plan: DemoPlan, screen: Screen
) -> None:
    """Shows each version as it is made, until all are there and every device has its share, or time is up."""
    deadline = time.monotonic() + plan.fleet_seconds
    seen = 0
    while time.monotonic() < deadline:
        await asyncio.sleep(POLL_S)
        children.check(COORDINATOR, *devices)
        if not (paths.state / FILE).is_file():
            continue
        record = read_record(paths.state)
        if len(record.versions) > seen:
            seen = len(record.versions)
            screen.advance(record.versions[-1].version, _describe(record.versions))
        is_shared = all(len(record.own(name)) >= plan.min_updates for name in devices)
        if seen > plan.num_versions and is_shared:
            return


def _describe(versions: Sequence[Version]) -> str:
    text = f"version {versions[-1].version}"
    scored = [version for version in versions if version.exact is not None]
    if scored:
        last = scored[-1]
        text += (
            f"; at version {last.version} {last.exact:.0%} of unseen sentences right, loss {last.loss:.2f}"
        )
    return text
