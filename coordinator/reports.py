"""What `status` and `history` tell, read from a journal that a coordinator may be writing to."""

from collections.abc import Iterable

from msgspec import Struct

from coordinator.journal import Journal, Update
from coordinator.roster import Device, read_devices
from coordinator.strategies.base import Share
from coordinator.versions import Version, VersionStore


class DeviceStatus(Struct, frozen=True):
    """One device."""

    device: str
    online: bool
    last_seen: float  # Unix time
    key: str
    backend: str | None
    accepted: int
    rejected: int
    merged: int
    mean_staleness: float | None  # of its merged updates
    weight_share: float  # of all weight in all versions
    tokens_per_s: float | None
    step: int | None  # of the task under way, or the last one
    steps: int | None  # 0: bounded by time


class FleetStatus(Struct, frozen=True):
    """The fleet now."""

    fleet: str
    base: str  # fingerprint
    version: int
    made_at: float  # Unix time
    loss: float | None
    exact: float | None
    waiting: int  # updates in the buffer
    accepted: int
    rejected: int
    refused: int  # messages that proved nobody's, the latest thousand
    devices: tuple[DeviceStatus, ...]


class VersionStatus(Struct, frozen=True):
    """One version and how it came about."""

    version: int
    parent: int | None
    made_at: float  # Unix time
    kind: str  # `first`, `merge` or `rollback`
    shares: tuple[Share, ...]
    step_norm: float | None
    remainder_norm: float | None
    dropped_norm: float | None
    loss: float | None
    exact: float | None
    sha256: str
    kept: bool  # can be exported and rolled back to


class Rejection(Struct, frozen=True):
    """An update that is in no version, and why."""

    update: str
    device: str
    base_version: int | None
    status: str  # `rejected`, `discarded` by a rollback, or `refused`: it proved nobody's
    reason: str
    detail: str
    at: float  # Unix time


def fleet_status(journal: Journal, versions: VersionStore) -> FleetStatus:
    """The fleet as the journal has it; None where no version was made yet."""
    updates = journal.updates(limit=1 << 30)
    current = versions.history(limit=1)[0]
    return FleetStatus(
        fleet=journal.meta("fleet") or "",
        base=journal.meta("base") or "",
        version=current.version,
        made_at=current.created_at,
        loss=current.loss,
        exact=current.exact,
        waiting=len(journal.waiting()),
        accepted=_count(updates, "accepted"),
        rejected=_count(updates, "rejected"),
        refused=len(journal.refusals(limit=1 << 30)),
        devices=tuple(_device_status(device, updates) for device in read_devices(journal)),
    )


def version_status(version: Version) -> VersionStatus:
    """A version's row with its report."""
    report = version.report
    return VersionStatus(
        version=version.version,
        parent=version.parent,
        made_at=version.created_at,
        kind="merge" if report else "first" if version.parent is None else "rollback",
        shares=report.shares if report else (),
        step_norm=report.step_norm if report else None,
        remainder_norm=report.remainder_norm if report else None,
        dropped_norm=report.dropped_norm if report else None,
        loss=version.loss,
        exact=version.exact,
        sha256=version.master,
        kept=version.kept,
    )


def rejections(journal: Journal, limit: int) -> list[Rejection]:
    """The latest updates that count for nothing, oldest first."""
    known = [
        Rejection(
            update=one.id,
            device=one.device,
            base_version=one.base_version,
            status=one.status,
            reason=one.reason or "",
            detail=one.detail,
            at=one.received_at,
        )
        for one in journal.updates(limit=1 << 30)
        if one.status != "accepted"
    ]
    refused = [
        Rejection(
            update=one.id,
            device=one.device,
            base_version=None,
            status="refused",
            reason=one.reason,
            detail=one.detail,
            at=one.at,
        )
        for one in journal.refusals(limit)
    ]
    return sorted([*known, *refused], key=lambda one: one.at)[-limit:]


def _device_status(device: Device, updates: list[Update]) -> DeviceStatus:
    own = [update for update in updates if update.device == device.device]
    merged = [update for update in own if update.merged_into is not None]
    staleness = [update.staleness or 0 for update in merged]
    weight = _weight(updates)
    return DeviceStatus(
        device=device.device,
        online=device.online,
        last_seen=device.last_seen,
        key=device.key,
        backend=device.hello.backend if device.hello else None,
        accepted=_count(own, "accepted"),
        rejected=_count(own, "rejected"),
        merged=len(merged),
        mean_staleness=sum(staleness) / len(staleness) if staleness else None,
        weight_share=_weight(own) / weight if weight else 0.0,
        tokens_per_s=device.telemetry.tokens_per_s if device.telemetry else None,
        step=device.telemetry.step if device.telemetry else None,
        steps=device.telemetry.steps if device.telemetry else None,
    )


def _count(updates: Iterable[Update], status: str) -> int:
    return sum(update.status == status for update in updates)


def _weight(updates: Iterable[Update]) -> float:
    return sum(abs(update.weight or 0.0) for update in updates)
