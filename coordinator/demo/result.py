"""What a run of the demo came to: the record that its table, plot and page are made from.

Every number is read from the coordinator's journal or from an evaluation of this run. Nothing is computed
here but means, shares and comparisons.
"""

from pathlib import Path

import msgspec
from msgspec import Struct


class Score(Struct, frozen=True, kw_only=True):
    """One adapter, or the base alone, on the held-out sentences."""

    exact: float  # share of sentences whose whole command is right, 0 to 1
    loss: float  # cross entropy of the command, nats a token


class DeviceResult(Struct, frozen=True, kw_only=True):
    """One device: what it did for the fleet, and how far it comes without it."""

    device_id: str
    kind: str  # of command its people ask for
    backend: str  # and the type of its GGUF file, where it has one
    slowdown: float
    updates: int  # accepted and merged
    mean_staleness: float  # versions
    weight_share: float  # of all merged weight, 0 to 1
    steps: int  # optimizer steps, in the fleet and, as many again, alone
    before: Score  # without an adapter; this and what follows on the weights that the device has
    alone: Score
    fleet: Score  # with the fleet's adapter


class UpdatePoint(Struct, frozen=True, kw_only=True):
    """One accepted update."""

    device_id: str
    seconds: float  # since the fleet began
    staleness: int  # versions, when it was merged
    loss: float  # on its own data, of the version it began from


class VersionPoint(Struct, frozen=True, kw_only=True):
    """One version of the fleet's adapter."""

    version: int
    seconds: float  # since the fleet began
    loss: float | None  # on sentences like the held-out ones; None where it was not scored
    exact: float | None


class Sample(Struct, frozen=True, kw_only=True):
    """One held-out sentence and what is answered to it."""

    prompt: str
    expected: str
    base: str
    fleet: str


class DemoResult(Struct, frozen=True, kw_only=True):
    """A whole run."""

    devices: list[DeviceResult]
    versions: list[VersionPoint]
    updates: list[UpdatePoint]
    samples: list[Sample]
    forms: list[str]  # that the fleet's adapter was written in
    num_held_out: int
    base: Score  # this and the next on the model as it is shipped
    fleet: Score
    seconds: float  # of the whole run
    notes: list[str]  # what was other than planned on this machine

    @property
    def best_alone(self) -> DeviceResult:
        """The device whose own adapter answers most held-out sentences."""
        return max(self.devices, key=lambda device: device.alone.exact)

    @property
    def fleet_wins(self) -> bool:
        """Whether the fleet's adapter answers more held-out sentences than every device's own."""
        return self.fleet.exact > self.best_alone.alone.exact

    @property
    def verdict(self) -> str:
        """One sentence, true of this run's numbers."""
        best = self.best_alone
        what = "beats" if self.fleet_wins else "does not beat"
        return (
            f"The fleet's adapter {what} every device alone: {self.fleet.exact:.1%} of {self.num_held_out} "
            f"unseen sentences exactly right, {best.alone.exact:.1%} for the best device by itself "
            f"({best.device_id}), {self.base.exact:.1%} before."
        )


def save_result(result: DemoResult, path: Path) -> None:
    """Writes the record as JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2))
