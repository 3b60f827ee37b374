"""What `history` and `export` tell of versions, read from a journal that a coordinator may be writing to."""

from msgspec import Struct

from converters.adapter import LoraAdapter
from coordinator.events.records import refusal
from coordinator.ledger.contract import EVERYTHING, Updates
from coordinator.ledger.records import Version
from coordinator.ledger.versions import VersionStore
from coordinator.strategies.contract import Share


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
    status: str  # `rejected`, `discarded` (by a rollback, or unmergeable) or `refused`, by its header
    reason: str
    detail: str
    at: float  # Unix time


def version_status(version: Version) -> VersionStatus:
    """Returns a version as `history` tells it."""
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


def rejections(journal: Updates, limit: int) -> list[Rejection]:
    """Returns the latest updates that count for nothing, oldest first."""
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
        for one in journal.updates(EVERYTHING)
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
    """Tells users of a version what they should know before they wonder why it changes nothing.

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
    """Counts the updates that a version and its ancestors hold, those of refused steps left out."""
    line = versions.lineage(version.version)
    reports = [one.report for one in versions.history() if one.version in line and one.report]
    return sum(share.weight != 0 for one in reports if one.step_scale for share in one.shares)


def is_without_effect(adapter: LoraAdapter) -> bool:
    """Tells whether an adapter's products are zero, as those of a new one are."""
    return not any(factors.a.any() and factors.b.any() for _, factors in adapter)
