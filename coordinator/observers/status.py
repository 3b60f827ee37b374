"""What `status` and `history` tell, read from a journal that a coordinator may be writing to."""

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from converters.adapter import LoraAdapter
from coordinator.intake.roster import Device, read_devices
from coordinator.ledger.journal import Journal
from coordinator.ledger.versions import Version, VersionStore
from coordinator.merging.pace import FleetPace, read_pace
from coordinator.observers.events import Tell
from coordinator.strategies.base import Report, Share
from edge.protocol.messages import Telemetry


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
    tokens_per_s: float | None  # of the task under way, or the last one
    step: int | None  # of the task under way; None: it trains nothing
    steps: int | None  # 0: bounded by time
    astray: float | None = None  # Unix time when it was at a version that is not here; None: it is not


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
    pace: FleetPace | None  # what the coordinator waits for; None: none is running


class OriginStatus(Struct, frozen=True):
    """The adapter that version 0 is."""

    format: str  # peft, mlx, gguf or canonical
    name: str  # of its file
    sha256: str  # of its file


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
    origin: OriginStatus | None  # of version 0, where the fleet began with an adapter


class Rejection(Struct, frozen=True):
    """An update that is in no version, and why."""

    update: str
    device: str
    base_version: int | None
    status: str  # `rejected`, `discarded` (by a rollback, or unmergeable), or `refused`: it proved nobody's
    reason: str
    detail: str
    at: float  # Unix time


class Tally(NamedTuple):
    """What the journal has of one device's updates."""

    device: str
    accepted: int
    rejected: int
    discarded: int
    merged: int
    mean_staleness: float | None
    weight: float
    num_tokens: int  # of the latest
    seconds: float


_TALLIES = """
SELECT device, total(status = 'accepted'), total(status = 'rejected'), total(status = 'discarded'),
    count(merged_into), avg(CASE WHEN merged_into IS NOT NULL THEN coalesce(staleness, 0) END),
    total(abs(weight)), num_tokens, seconds, max(seq)
FROM updates GROUP BY device
"""  # of SQLite's bare columns in a row with max(), num_tokens and seconds are those of that row


def fleet_status(journal: Journal, versions: VersionStore, now: float) -> FleetStatus:
    """The fleet as the journal has it, where a version was made.

    Args:
        journal: A coordinator may be writing to it.
        versions: Its versions.
        now: Unix time in seconds.
    """
    current = versions.history(limit=1)[0]
    tallies = {row[0]: Tally(row[0], *map(int, row[1:5]), *row[5:9]) for row in journal.rows(_TALLIES)}
    pace = read_pace(journal)
    pace = pace if pace and pace.is_current(now) else None
    weight = sum(tally.weight for tally in tallies.values())
    devices = tuple(
        _device_status(device, tallies.get(device.device, _nothing(device.device)), weight, pace is not None)
        for device in read_devices(journal)
    )
    return FleetStatus(
        fleet=journal.meta("fleet") or "",
        base=journal.meta("base") or "",
        version=current.version,
        made_at=current.created_at,
        loss=current.loss,
        exact=current.exact,
        waiting=len(journal.waiting()),
        accepted=sum(tally.accepted for tally in tallies.values()),
        rejected=sum(tally.rejected for tally in tallies.values()),
        discarded=sum(tally.discarded for tally in tallies.values()),
        refused=len(journal.refusals(limit=1 << 30)),
        fairness=jain_index([device.weight_share for device in devices]),
        devices=devices,
        pace=pace,
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
    report, origin = version.report, version.origin
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
        origin=OriginStatus(origin.format, origin.name, origin.sha256) if origin else None,
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


def caution(versions: VersionStore, version: Version, adapter: LoraAdapter) -> str:
    """Tells what a user of a version should know before they wonder why it changes nothing.

    Args:
        versions: Its fleet's.
        version: The version.
        adapter: What it is to those who use it.

    Returns:
        A sentence, or nothing where updates of devices are in it.
    """
    is_zero = is_without_effect(adapter)
    if num_merged(versions, version):
        kept = "its B is zero, and every device keeps its own (fedsa-lora)"
        return f"version {version.version} changes nothing by itself: {kept}" if is_zero else ""
    what = "the base model itself, for its B is zero" if is_zero else "the adapter that the fleet began from"
    why = "no step was taken so far, see `tunefleet history`" if version.depth else "no update is in it yet"
    return f"version {version.version} has learnt nothing, {why}; it is {what}"


def num_merged(versions: VersionStore, version: Version) -> int:
    """The updates that a version and its ancestors hold, those of refused steps left out."""
    line = versions.lineage(version.version)
    reports = [one.report for one in versions.history() if one.version in line and one.report]
    return sum(share.weight != 0 for one in reports if one.step_scale for share in one.shares)


def is_without_effect(adapter: LoraAdapter) -> bool:
    """Whether an adapter's products are zero, as those of a new one are."""
    return not any(factors.a.any() and factors.b.any() for _, factors in adapter)


def _nothing(device: str) -> Tally:
    return Tally(device, 0, 0, 0, 0, None, 0.0, 0, 0.0)


def _device_status(device: Device, tally: Tally, weight: float, is_served: bool) -> DeviceStatus:
    is_online = device.online and is_served
    task = device.telemetry if is_online and is_under_way(device.telemetry) else None
    measured = tally.num_tokens / tally.seconds if tally.seconds else None
    return DeviceStatus(
        device=device.device,
        online=is_online,
        last_seen=device.last_seen,
        key=device.key,
        backend=device.hello.backend if device.hello else None,
        accepted=tally.accepted,
        rejected=tally.rejected,
        merged=tally.merged,
        mean_staleness=tally.mean_staleness,
        weight_share=tally.weight / weight if weight else 0.0,
        tokens_per_s=task.tokens_per_s if task else measured,
        step=task.step if task else None,
        steps=task.steps if task else None,
        astray=device.astray,
    )


def is_under_way(telemetry: Telemetry | None) -> bool:
    """Whether a device's progress is of a task that it has not finished."""
    return telemetry is not None and (telemetry.steps == 0 or telemetry.step < telemetry.steps)
