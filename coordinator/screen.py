"""How the coordinator's reports look on a terminal: rich tables; plain text where the output is none."""

import time
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from coordinator.reports import FleetStatus, Rejection, VersionStatus


def show_status(report: FleetStatus) -> None:
    """The fleet now."""
    console = Console(highlight=False)
    quality = f", loss {report.loss:.4f}, exact {report.exact or 0:.1%}" if report.loss is not None else ""
    console.print(f"fleet {report.fleet}: version {report.version}, made {_clock(report.made_at)}{quality}")
    console.print(
        f"updates: {report.waiting} waiting, {report.accepted} accepted, {report.rejected} rejected, "
        f"{report.discarded} discarded, {report.refused} refused"
    )
    if report.fairness is not None:
        console.print(f"fairness: {report.fairness:.3f} (Jain's index of the weights; 1 is even)")
    table = Table(
        "device", "", "backend", "accepted", "rejected", "mean staleness", "weight", "tok/s", "task"
    )
    for device in report.devices:
        table.add_row(
            device.device,
            "online" if device.online else f"seen {_clock(device.last_seen)}",
            device.backend or "",
            str(device.accepted),
            str(device.rejected),
            _number(device.mean_staleness, ".2f"),
            f"{device.weight_share:.1%}",
            _number(device.tokens_per_s, ".0f"),
            f"{device.step}/{device.steps or '…'}" if device.step is not None else "",
        )
    console.print(table)


def show_history(versions: list[VersionStatus], rejected: list[Rejection]) -> None:
    """Versions, oldest first, what was left out of them, and what counted for nothing."""
    console = Console(highlight=False)
    columns = {
        "version": [str(one.version) for one in versions],
        "parent": [_number(one.parent, "d") for one in versions],
        "made": [_clock(one.made_at) for one in versions],
        "from": [_contributors(one) for one in versions],
        "step": [_step(one) for one in versions],
        "carried": [_number(one.remainder_norm or None, ".4g") for one in versions],
        "guard": [_guard(one) for one in versions],
        "loss": [_number(one.loss, ".4f") for one in versions],
        "exact": [_number(one.exact, ".1%") for one in versions],
    }
    told = {title: cells for title, cells in columns.items() if any(cells)}
    table = Table(*told)
    for cells in zip(*told.values(), strict=True):
        table.add_row(*cells)
    console.print(table)
    for line in [*_reasons(versions), *(_rejection(fault) for fault in rejected)]:
        console.print(line, markup=False)


def _contributors(one: VersionStatus) -> str:
    counted = [share for share in one.shares if share.weight]
    return (
        ", ".join(f"{share.device} {share.weight:.2f} (τ {share.staleness})" for share in counted) or one.kind
    )


def _step(one: VersionStatus) -> str:
    """Its norm, and what the guard left of it."""
    scale = f" (scale {one.step_scale:.3g})" if one.step_scale not in (None, 0, 1) else ""
    return _number(one.step_norm or None, ".4g") + scale


def _guard(one: VersionStatus) -> str:
    """The calibration loss before and after."""
    after = one.loss_refused if one.loss_refused is not None else one.loss_after
    return f"{one.loss_before:.4f} → {after:.4f}" if None not in (one.loss_before, after) else ""


def _reasons(versions: list[VersionStatus]) -> Iterator[str]:
    for one in versions:
        if one.refusal:
            yield f"version {one.version}: {one.refusal}"
        for share in one.shares:
            if share.reason:
                yield f"version {one.version}: update {share.update[:8]} of {share.device}: {share.reason}"


def _rejection(fault: Rejection) -> str:
    update = f"update {fault.update[:8]} of {fault.device}"
    return f"{_clock(fault.at)} {fault.status}: {update}, {fault.reason}: {fault.detail}"


def _clock(at: float) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(at))


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
