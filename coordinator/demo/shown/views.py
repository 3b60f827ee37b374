"""What the demo's screen shows of the fleet while it learns."""

from typing import NamedTuple

from coordinator.demo.result import VersionPoint

PACE_OVER = 10  # versions, whose pace tells how long the rest takes


class Activity(NamedTuple):
    """What a device does."""

    what: str
    step: int = 0
    steps: int = 0  # of the task under way; 0: there is none


class DeviceView(NamedTuple):
    """One device."""

    device_id: str
    backend: str  # and the type of its GGUF file, where it has one
    slowdown: float
    activity: Activity
    updates: int  # accepted


class FleetView(NamedTuple):
    """The fleet now."""

    devices: tuple[DeviceView, ...]
    versions: list[VersionPoint]  # oldest first
    most: int  # versions, when the fleet stops at the latest
    most_s: float  # seconds left until it stops, whatever it has learnt

    @property
    def version(self) -> int:
        """The current version; -1 where there is none yet."""
        return self.versions[-1].version if self.versions else -1

    @property
    def scored(self) -> VersionPoint | None:
        """The newest version that was scored."""
        return next((point for point in reversed(self.versions) if point.exact is not None), None)

    @property
    def left_s(self) -> float | None:
        """Seconds that the fleet takes at most at its present pace; None where that is not known yet."""
        recent = self.versions[1:][-PACE_OVER - 1 :]  # before the first, the devices loaded their models
        if len(recent) < 3:
            return None
        pace_s = (recent[-1].seconds - recent[0].seconds) / (len(recent) - 1)
        return max(0.0, min(self.most_s, (self.most - self.version) * pace_s))

    def describe(self) -> str:
        """Returns the version and how good the newest scored one is, in one line."""
        if self.version < 0:
            return "no version yet: the base model is loaded, and the devices join"
        text = f"version {self.version}"
        scored = self.scored
        if scored is None or scored.exact is None or scored.loss is None:
            return text
        quality = f"{scored.exact:.0%} of unseen sentences right, loss {scored.loss:.2f}"
        at = "" if scored.version == self.version else f" at version {scored.version}"
        return f"{text}: {quality}{at}"
