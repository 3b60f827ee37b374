"""How the coordinator's reports look on a terminal, and how they are kept up to date there."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from converters.plain import plain, plain_lines
from coordinator.events.pace import describe_pace
from coordinator.initial_adapter import describe
from coordinator.observers.access import DeviceAccess
from coordinator.observers.history import Rejection, VersionStatus
from coordinator.observers.status import DeviceStatus, FleetStatus

WATCH_EVERY_S = 1.0
SPACE = 2  # between columns


class Column(NamedTuple):
    """One column of a table; one without any text is left out."""

    title: str
    cells: Sequence[str]
    is_number: bool = False
    has_lines: bool = False  # cells are laid out in lines already

    @property
    def width(self) -> int:
        """The width of its widest line, its title included."""
        return max(len(line) for cell in (self.title, *self.cells) for line in (cell.splitlines() or [""]))


def status_view(width: int, *, report: FleetStatus, now: float) -> RenderableType:
    """Lays out the fleet as it is now.

    Args:
        width: Columns of the terminal.
        report: What the journal has.
        now: Unix time in seconds.
    """
    lines = [
        f"fleet {report.fleet}: version {report.version}, made {_date(report.made_at)}{_quality(report)}",
        describe_pace(report.pace, now)
        if report.pace
        else "no coordinator is running here: `tunefleet serve` with the same --state goes on from here",
        f"updates: {report.waiting} waiting, {report.accepted} accepted, {report.rejected} rejected, "
        f"{report.discarded} discarded, {report.refused} refused",
    ]
    if report.fairness is not None:
        lines.append(f"fairness: {report.fairness:.3f} (Jain's index of the weights; 1 is even)")
    if not report.devices:
        return _lines([*lines, "no device has joined yet"])
    lines += [
        f"{device.device} does not follow: it was at a version that is not here, {_ago(device.astray, now)}"
        for device in report.devices
        if device.astray is not None
    ]
    return Group(_lines([*lines, ""]), _devices(report.devices, width, now))


def access_view(width: int, *, devices: Sequence[DeviceAccess]) -> RenderableType:
    """Lays out who may take part; whole keys stand in the JSON."""
    if not devices:
        return _lines(["no device has come, and none was let in"])
    columns = [
        Column("device", [one.device for one in devices]),
        Column("let in by", [_entry(one) for one in devices]),
        Column("seen", [_date(one.last_seen) if one.last_seen else "never" for one in devices]),
        Column("key", [one.key[:16] + "…" if one.key else "" for one in devices]),
    ]
    return _table(_fitting(columns, width))


def history_view(
    width: int, *, versions: Sequence[VersionStatus], rejections: Sequence[Rejection]
) -> RenderableType:
    """Lays out versions, oldest first, what was left out of them, and what counted for nothing."""
    parents = ["" if one.parent in (None, one.version - 1) else str(one.parent) for one in versions]
    columns = {  # the first are kept longest where there is no room
        "version": Column("version", [str(one.version) for one in versions], is_number=True),
        "made": Column("made", [_date(one.made_at) for one in versions]),
        "parent": Column("parent", parents, is_number=True),
        "exact": Column("exact", [_number(one.exact, ".1%") for one in versions], is_number=True),
        "loss": Column("loss", [_number(one.loss, ".4f") for one in versions], is_number=True),
        "guard": Column("guard", [_guard(one) for one in versions]),
        "step": Column("step", [_step(one) for one in versions]),
        "carried": Column("carried", [_number(one.remainder_norm or None, ".4g") for one in versions]),
    }
    contributors = [_contributors(one) for one in versions]
    longest = max(len(name) for names in contributors for name in names)
    kept = _fitting(list(columns.values()), width - SPACE - max(longest, len("from")))
    room = width - sum(column.width + SPACE for column in kept)
    shown = [column for name, column in columns.items() if column in kept]
    shown.append(Column("from", [_wrapped(names, room) for names in contributors], has_lines=True))
    reasons = [*_reasons(versions), *(_rejection(fault) for fault in rejections)]
    return Group(_table(shown), _lines(reasons)) if reasons else _table(shown)


def show(view: Callable[[int], RenderableType]) -> None:
    """Prints a report.

    Args:
        view: Lays it out in so many columns.
    """
    console = Console(highlight=False)
    console.print(view(console.width))


def watch(look: Callable[[], Callable[[int], RenderableType]]) -> None:
    """Keeps a report up to date on the terminal until Ctrl-C; elsewhere prints it whenever it has changed.

    Args:
        look: Reads the report anew.
    """
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the cursor comes back
    try:
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                while True:
                    live.update(look()(console.width), refresh=True)
                    time.sleep(WATCH_EVERY_S)
        else:
            _print_changes(lambda: _plain(look()))
    except KeyboardInterrupt:
        return


def watch_lines(look: Callable[[], str]) -> None:
    """Prints a line whenever it has changed, until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _print_changes(look)
    except KeyboardInterrupt:
        return


def _print_changes(look: Callable[[], str]) -> None:
    told = ""
    while True:
        if (text := look()) != told:
            told = text
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        time.sleep(WATCH_EVERY_S)


def _plain(view: Callable[[int], RenderableType]) -> str:
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(view(console.width))
    return captured.get()


def _devices(devices: Sequence[DeviceStatus], width: int, now: float) -> Table:
    columns = [  # the first are kept longest where there is no room
        Column("device", [one.device for one in devices]),
        Column("seen", [_seen(one, now) for one in devices]),
        Column("accepted", [_accepted(one) for one in devices], is_number=True),
        Column("task", [_task(one) for one in devices], is_number=True),
        Column(
            "weight", [f"{one.weight_share:.1%}" if one.merged else "" for one in devices], is_number=True
        ),
        Column("tok/s", [_number(one.tokens_per_s, ",.0f") for one in devices], is_number=True),
        Column("backend", [plain(one.backend or "") for one in devices]),
        Column("stale", [_number(one.mean_staleness, ".2f") for one in devices], is_number=True),
    ]
    return _table(_fitting(columns, width))


def _fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """Leaves out empty columns, and the last ones until the rest fits; the first one stays."""
    kept = [column for column in columns if any(column.cells)]
    while len(kept) > 1 and sum(column.width + SPACE for column in kept) - SPACE > width:
        kept.pop()
    return kept


def _table(columns: Sequence[Column]) -> Table:
    """Makes a table without lines, which take room; what is too wide is folded, so that no name is cut."""
    table = Table(box=None, pad_edge=False, padding=(0, SPACE, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column.title, justify="right" if column.is_number else "left", overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        told = zip(cells, columns, strict=True)
        table.add_row(*(Text(plain_lines(cell) if one.has_lines else plain(cell)) for cell, one in told))
    return table


def _lines(lines: Sequence[str]) -> Text:
    return Text("\n".join(map(plain, lines)))


def _entry(one: DeviceAccess) -> str:
    if one.banned_at is not None:
        return "banned"
    return one.admitted_by + (", new key" if one.num_rotations else "")


def _quality(report: FleetStatus) -> str:
    if report.loss is None:
        return ""
    return f", loss {report.loss:.4f}, exact {report.exact or 0:.1%}"


def _seen(device: DeviceStatus, now: float) -> str:
    if device.online:
        return "online"
    if not device.last_seen:
        return "never"
    return _ago(device.last_seen, now)


def _ago(at: float, now: float) -> str:
    ago_s = max(0.0, now - at)
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if ago_s >= 2 * seconds:
            return f"{ago_s / seconds:.0f} {unit} ago"
    return f"{ago_s:.0f} s ago"


def _accepted(device: DeviceStatus) -> str:
    sent = device.accepted + device.rejected
    return f"{device.accepted} of {sent}" if device.rejected else str(device.accepted)


def _task(device: DeviceStatus) -> str:
    return f"{device.step}/{device.steps or '…'}" if device.step is not None else ""


def _contributors(one: VersionStatus) -> list[str]:
    counted = [share for share in one.shares if share.weight]
    told = [
        f"{share.device} {share.weight:.2f}{f' (τ {share.staleness})' if share.staleness else ''}"
        for share in counted
    ]
    return told or [one.kind]


def _wrapped(words: Sequence[str], width: int) -> str:
    """Joins words by commas, in lines that break between them only."""
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 3 > width:
            lines[-1] += ","
            lines.append(word)
        else:
            lines[-1] += f", {word}"
    return "\n".join(lines)


def _step(one: VersionStatus) -> str:
    """Tells a step's norm, and what the guard left of it."""
    scale = f" (scale {one.step_scale:.3g})" if one.step_scale not in (None, 0, 1) else ""
    return _number(one.step_norm or None, ".4g") + scale


def _guard(one: VersionStatus) -> str:
    """Tells the calibration loss before and after."""
    after = one.loss_refused if one.loss_refused is not None else one.loss_after
    return f"{one.loss_before:.4f} → {after:.4f}" if None not in (one.loss_before, after) else ""


def _reasons(versions: Sequence[VersionStatus]) -> Iterator[str]:
    for one in versions:
        if one.origin:
            yield f"version {one.version}: the adapter {describe(one.origin)}"
        if one.refusal:
            yield f"version {one.version}: {one.refusal}"
        for share in one.shares:
            if share.reason:
                yield f"version {one.version}: update {share.update[:8]} of {share.device}: {share.reason}"


def _rejection(fault: Rejection) -> str:
    update = f"update {fault.update[:8]} of {fault.device}"
    return f"{_date(fault.at)} {fault.status}: {update}, {fault.reason}: {fault.detail}"


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
