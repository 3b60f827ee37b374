"""What `status` tells, read from a journal that a coordinator may be writing to, and noted there for it."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from converters.files.text import decode_record
from coordinator.events.pace import KEY, FleetPace
from coordinator.events.records import FleetEvent, PaceChanged, Stopped
from coordinator.ledger.contract import EVERYTHING, Facts, Journal
from coordinator.ledger.records import Device, Tally
from coordinator.ledger.versions import VersionStore
from edge.errors import StateError
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
    refused: int  # headers that contradicted themselves, the latest thousand
    fairness: float | None  # Jain's index of the devices' weight shares; None: nothing is merged yet
    devices: tuple[DeviceStatus, ...]
    pace: FleetPace | None  # what the coordinator waits for; None: none is running


def fleet_status(journal: Journal, versions: VersionStore, now: float) -> FleetStatus:
    """Reads the fleet from a journal in which a version was made.

    Args:
        journal: A coordinator may be writing to it.
        versions: Its versions.
        now: Unix time in seconds.
    """
    current = versions.history(limit=1)[0]
    tallies = journal.tallies()
    pace = read_pace(journal)
    pace = pace if pace and pace.is_current(now) else None
    weight = sum(tally.weight for tally in tallies.values())
    devices = tuple(
        _device_status(device, tallies.get(device.device, Tally()), weight, pace is not None)
        for device in journal.devices()
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
        refused=len(journal.refusals(EVERYTHING)),
        fairness=jain_index([device.weight_share for device in devices]),
        devices=devices,
        pace=pace,
    )


class StatusNotes:
    """Keeps in the journal what `status` cannot see otherwise: how far a running coordinator is.

    Args:
        journal: Of its state folder.
    """

    def __init__(self, journal: Facts) -> None:
        self._journal = journal

    def __call__(self, event: FleetEvent) -> None:
        """Notes the pace, until nothing is waited for any more.

        Raises:
            DiskRefused: The note is as it was.
        """
        if isinstance(event, PaceChanged):
            self._journal.note(KEY, msgspec.json.encode(event.pace).decode())
        elif isinstance(event, Stopped):
            self._journal.note(KEY, None)


def read_pace(journal: Facts) -> FleetPace | None:
    """Returns what the coordinator of a state folder waits for; None where none runs, by its journal."""
    noted = journal.meta(KEY)
    if not noted:
        return None
    return decode_record(noted, FleetPace, lambda why: StateError(f"the journal's pace is damaged: {why}"))


def jain_index(shares: Sequence[float]) -> float | None:
    """Computes Jain's fairness index, (sum x)^2 / (n sum x^2): 1 for equal shares, 1/n where one has all.

    Jain, Chiu & Hawe 1984, DEC TR-301. None where there is nothing to share.
    """
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else None


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
        rejected=tally.rejected + device.num_unlisted,
        merged=tally.merged,
        mean_staleness=tally.mean_staleness,
        weight_share=tally.weight / weight if weight else 0.0,
        tokens_per_s=task.tokens_per_s if task else measured,
        step=task.step if task else None,
        steps=task.steps if task else None,
        astray=device.astray,
    )


def is_under_way(telemetry: Telemetry | None) -> bool:
    """Tells whether a device's progress is of a task that it has not finished."""
    return telemetry is not None and (telemetry.steps == 0 or telemetry.step < telemetry.steps)
