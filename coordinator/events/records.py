"""What happens at a coordinator, as records that every observer gets in the order in which it happens.

The fields of a record are what `serve --json` prints of it (docs/json.md), and `text` is the line that people
read. Fields in `untold` are for observers alone.
"""
# ruff: noqa: D101, D102 - `line` and `text` say what happened

from typing import Any, ClassVar

from msgspec import Struct, structs

from coordinator.events.pace import FleetPace, describe_pace
from coordinator.strategies.contract import Report


class FleetEvent(Struct, frozen=True):
    """One thing that happened at a coordinator; its tag is its kind in JSON."""

    line: ClassVar[str] = ""  # what people read, fields in braces
    untold: ClassVar[frozenset[str]] = frozenset()  # fields that JSON leaves out

    @property
    def kind(self) -> str:
        """Its name in JSON."""
        return str(self.__struct_config__.tag)

    @property
    def text(self) -> str:
        """The line that people read."""
        return self.line.format(**structs.asdict(self))

    @property
    def facts(self) -> dict[str, Any]:
        """What JSON says beside kind and text."""
        return {name: value for name, value in structs.asdict(self).items() if name not in self.untold}


class ModelLoaded(FleetEvent, frozen=True, tag="loaded"):
    data: str
    backend: str
    precision: str
    why: str  # this precision

    @property
    def text(self) -> str:
        why = f" ({self.why})" if self.why else ""
        return f"{self.data} is read with {self.backend} in {self.precision}{why}"


class Serving(FleetEvent, frozen=True, tag="serving"):
    fleet: str
    version: int
    strategy: str
    key: str  # public
    line = "fleet {fleet} at version {version}, merged by {strategy}; coordinator key {key}"


class AdapterGiven(FleetEvent, frozen=True, tag="began"):
    format: str
    name: str
    sha256: str
    num_modules: int
    adapter: str  # in words
    coverage: str  # of the base model, in words
    line = "version 0 is the adapter {adapter}: {coverage}"
    untold = frozenset({"adapter", "coverage"})


class Calibrated(FleetEvent, frozen=True, tag="calibrated"):
    version: int
    loss: float
    line = "version {version}: calibration loss {loss:.4f}"


class DeviceJoined(FleetEvent, frozen=True, tag="joined"):
    device: str
    backend: str
    key: str
    line = "device {device} joined with {backend}; key {key}"


class DeviceOnline(FleetEvent, frozen=True, tag="online"):
    device: str
    line = "device {device} is online"


class DeviceOffline(FleetEvent, frozen=True, tag="offline"):
    device: str
    line = "device {device} is offline"


class DeviceBarred(FleetEvent, frozen=True, tag="barred"):
    device: str
    key: str  # public
    line = "device {device} may speak no longer; what it was sending is dropped (key {key:.16}…)"


class DeviceAdmitted(FleetEvent, frozen=True, tag="admitted"):
    device: str
    key: str  # public
    how: str
    line = "device {device} is {how}: key {key}"


class UpdateAccepted(FleetEvent, frozen=True, tag="accepted"):
    update: str
    device: str
    base_version: int
    line = "update {update:.8} of {device} accepted, from version {base_version}"


class UpdateRejected(FleetEvent, frozen=True, tag="rejected"):
    update: str
    device: str
    base_version: int
    reason: str
    detail: str
    line = "update {update:.8} of {device} rejected, {reason}: {detail}"


class UpdateRefused(FleetEvent, frozen=True, tag="refused"):
    update: str
    device: str
    reason: str
    detail: str
    line = "update {update:.8} of {device} refused, {reason}: {detail}"


class UpdatesDiscarded(FleetEvent, frozen=True, tag="discarded"):
    updates: tuple[str, ...]
    reason: str
    told: str  # which, and why
    line = "{told}"
    untold = frozenset({"told"})


class PaceChanged(FleetEvent, frozen=True, tag="waiting"):
    pace: FleetPace
    is_news: bool = True

    @property
    def text(self) -> str:
        return describe_pace(self.pace, self.pace.noted_at)

    @property
    def facts(self) -> dict[str, Any]:
        return {name: value for name, value in structs.asdict(self.pace).items() if name != "noted_at"}


class VersionMade(FleetEvent, frozen=True, tag="version"):
    version: int
    report: Report

    @property
    def text(self) -> str:
        return f"version {self.version}: {_merged(self.version, self.report)}"

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "num_updates": len(self.report.shares),
            "devices": _devices(self.report),
            "step_norm": self.report.step_norm,
            "step_scale": self.report.step_scale,
            "loss_before": self.report.loss_before,
            "loss_after": self.report.loss_after,
        }


class UpdateFiltered(FleetEvent, frozen=True, tag="filtered"):
    version: int
    update: str
    device: str
    reason: str
    line = "update {update:.8} of {device}: {reason}"


class RolledBack(FleetEvent, frozen=True, tag="rollback"):
    version: int
    parent: int | None
    line = "version {version}: went back to version {parent}"


class Restored(FleetEvent, frozen=True, tag="restored"):
    version: int
    before: int
    line = (
        "this state is at version {version}, and the fleet was at {before}: "
        "it was restored from a backup, and devices will follow it back"
    )


class VersionScored(FleetEvent, frozen=True, tag="scored"):
    version: int
    loss: float
    exact: float
    line = "version {version}: loss {loss:.4f}, exact {exact:.1%}"


class Warned(FleetEvent, frozen=True, tag="warning"):
    told: str
    line = "{told}"
    untold = frozenset({"told"})


class OtherKeyFound(FleetEvent, frozen=True, tag="warning"):
    key: str  # public
    line = "another coordinator, with key {key}, was here; devices that have pinned it will not follow"


class Stopped(FleetEvent, frozen=True, tag="stopped"):
    version: int | None  # None: the broker never answered

    @property
    def text(self) -> str:
        if self.version is None:
            return "stopped before the broker answered; nothing was begun"
        return "stopped; state is on disk, the same command goes on from here"


def refusal(report: Report) -> str:
    """Returns why a merge left the adapter as it was; nothing where it did not."""
    if report.step_scale != 0:
        return ""
    if not report.shares:
        return "its updates were lost, or could not be merged"
    if report.loss_before is None or report.loss_refused is None:
        return "every update was left out"
    return f"refused by the guard: calibration loss {report.loss_before:.4f} → {report.loss_refused:.4f}"


def _merged(version: int, report: Report) -> str:
    if not report.shares:
        return f"version {version - 1} again, for devices to go on from: {refusal(report)}"
    staleness = max(share.staleness for share in report.shares)
    number = len(report.shares)
    what = f"{number} update{'' if number == 1 else 's'} of {', '.join(_devices(report))}"
    return f"{what}, staleness up to {staleness}, {_outcome(report)}"


def _devices(report: Report) -> list[str]:
    return sorted({share.device for share in report.shares})


def _outcome(report: Report) -> str:
    if report.step_scale == 0:
        return f"{refusal(report)}; the adapter stays as it was"
    told = f"step {report.step_norm:.4g}"
    if report.step_scale != 1:
        told += f" ({report.step_scale:.4g} times the merged one)"
    if report.loss_before is not None and report.loss_after is not None:
        told += f", calibration loss {report.loss_before:.4f} → {report.loss_after:.4f}"
    return told
