"""What `status` and `history` tell, read from a journal that a coordinator may be writing to."""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from coordinator.events import Tell
from coordinator.journal import Journal, Update
from coordinator.roster import Device, read_devices
from coordinator.strategies.base import Report, Share
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
    discarded: int  # accepted, and in no version after all
    refused: int  # messages that proved nobody's, the latest thousand
    fairness: float | None  # Jain's index of the devices' weight shares; None: nothing is merged yet
    devices: tuple[DeviceStatus, ...]


class VersionStatus(Struct, frozen=True):
    """One version and how it came about."""

    version: int
    parent: int | None
    made_at: float  # Unix time
    kind: str  # `first`, `merge`, `refused` (a merge that changed nothing) or `rollback`
    refusal: str  # why a merge changed nothing
    strategy: str | None
    shares: tuple[Share, ...]
    step_norm: float | None
    remainder_norm: float | None
    dropped_norm: float | None
    step_scale: float | None  # in merged steps, by the guard; 0: refused
    loss_before: float | None  # on the calibration set, nats per label; None: no guard
    loss_after: float | None
    loss_refused: float | None  # of the shortest step that the guard refused
    loss: float | None  # on the evaluation data, nats per label
    exact: float | None
    sha256: str
    kept: bool  # can be exported and rolled back to


class Rejection(Struct, frozen=True):
    """An update that is in no version, and why."""

    update: str
    device: str
    base_version: int | None
    status: str  # `rejected`, `discarded` (by a rollback, or unmergeable), or `refused`: it proved nobody's
    reason: str
    detail: str
    at: float  # Unix time


def fleet_status(journal: Journal, versions: VersionStore) -> FleetStatus:
    """The fleet as the journal has it; None where no version was made yet."""
    updates = journal.updates(limit=1 << 30)
    current = versions.history(limit=1)[0]
    devices = tuple(_device_status(device, updates) for device in read_devices(journal))
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
        discarded=_count(updates, "discarded"),
        refused=len(journal.refusals(limit=1 << 30)),
        fairness=jain_index([device.weight_share for device in devices]),
        devices=devices,
    )


def jain_index(shares: Sequence[float]) -> float | None:
    """Jain's fairness index, (sum x)^2 / (n sum x^2): 1 where all shares are alike, 1/n where one has all.

    Jain, Chiu & Hawe 1984, DEC TR-301. None where there is nothing to share.
    """
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else None


def tell_merge(tell: Tell, version: int, report: Report) -> None:
    """Tells a merge: one event for the version, one for every update that a filter left out or cut."""
    tell(
        "version",
        f"version {version}: {_merge(version, report)}",
        version=version,
        num_updates=len(report.shares),
        devices=sorted({share.device for share in report.shares}),
        step_norm=report.step_norm,
        step_scale=report.step_scale,
        loss_before=report.loss_before,
        loss_after=report.loss_after,
    )
    for one in report.shares:
        if one.reason:
            text = f"update {one.update[:8]} of {one.device}: {one.reason}"
            tell("filtered", text, version=version, update=one.update, device=one.device, reason=one.reason)


def _merge(version: int, report: Report) -> str:
    if not report.shares:
        return f"version {version - 1} again, for devices to go on from: {refusal(report)}"
    devices = ", ".join(sorted({share.device for share in report.shares}))
    staleness = max(share.staleness for share in report.shares)
    what = f"{count(len(report.shares), 'update')} of {devices}"
    return f"{what}, staleness up to {staleness}, {_outcome(report)}"


def count(number: int, noun: str) -> str:
    """As `1 update` or `3 updates`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _outcome(report: Report) -> str:
    if report.step_scale == 0:
        return f"{refusal(report)}; the adapter stays as it was"
    told = f"step {report.step_norm:.4g}"
    if report.step_scale != 1:
        told += f" ({report.step_scale:.4g} times the merged one)"
    if report.loss_before is not None and report.loss_after is not None:
        told += f", calibration loss {report.loss_before:.4f} → {report.loss_after:.4f}"
    return told


def refusal(report: Report) -> str:
    """Why a merge left the adapter as it was; nothing where it did not."""
    if report.step_scale != 0:
        return ""
    if not report.shares:
        return "its updates were lost, or could not be merged"
    if report.loss_before is None or report.loss_refused is None:
        return "every update was left out"
    return f"refused by the guard: calibration loss {report.loss_before:.4f} → {report.loss_refused:.4f}"


def version_status(version: Version) -> VersionStatus:
    """A version's row with its report."""
    report = version.report
    return VersionStatus(
        version=version.version,
        parent=version.parent,
        made_at=version.created_at,
        kind=_kind(version),
        refusal=refusal(report) if report else "",
        strategy=report.strategy if report else None,
        shares=report.shares if report else (),
        step_norm=report.step_norm if report else None,
        remainder_norm=report.remainder_norm if report else None,
        dropped_norm=report.dropped_norm if report else None,
        step_scale=report.step_scale if report else None,
        loss_before=report.loss_before if report else None,
        loss_after=report.loss_after if report else None,
        loss_refused=report.loss_refused if report else None,
        loss=version.loss,
        exact=version.exact,
        sha256=version.master,
        kept=version.kept,
    )


def _kind(version: Version) -> str:
    if version.report is not None:
        return "refused" if version.report.step_scale == 0 else "merge"
    return "first" if version.parent is None else "rollback"


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
