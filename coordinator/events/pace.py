"""How far the next version is, as `status` and `serve` tell it."""

import math

from msgspec import Struct

KEY = "pace"  # in the journal
REPEAT_EVERY_S = 60.0
SILENT_S = 2.5 * REPEAT_EVERY_S  # a coordinator that told nothing for so long was killed


class FleetPace(Struct, frozen=True, forbid_unknown_fields=True):
    """What a running coordinator waits for."""

    have: int  # updates that count towards the next version; in a round, devices that have answered
    needed: int
    num_online: int  # devices
    num_able: int  # of them, that can train some tier of this fleet
    due_at: float | None  # Unix time when what is there is merged; None: nothing waits, or for ever
    noted_at: float  # Unix time

    @property
    def facts(self) -> tuple[int, int, int, int, bool]:
        """All but the times: that time passes is no news."""
        return self.have, self.needed, self.num_online, self.num_able, self.due_at is None

    def is_current(self, now: float) -> bool:
        """Whether the coordinator that noted it seems to run; a clock that was set back proves nothing."""
        return abs(now - self.noted_at) < SILENT_S


def describe_pace(pace: FleetPace, now: float) -> str:
    """Returns one line, as `1 of 4 updates, 1 device online, merging in 40 s`."""
    updates = f"{pace.have} of {pace.needed} update{'' if pace.needed == 1 else 's'}"
    return f"{updates}, {_devices(pace)}{_wait(pace, now)}"


def _devices(pace: FleetPace) -> str:
    count = pace.num_online or "no"
    online = f"{count} device{'' if pace.num_online == 1 else 's'} online"
    if pace.num_able == pace.num_online:
        return online
    return f"{online}, {pace.num_able} of them able to train a tier of this fleet"


def _wait(pace: FleetPace, now: float) -> str:
    if not 0 < pace.have < pace.needed:
        return ""
    if pace.due_at is None:
        return f", waiting for {pace.needed - pace.have} more however long it takes (time_budget_s is 0)"
    left_s = max(0, math.ceil(pace.due_at - now))
    return f", merging in {left_s} s" if left_s < 120 else f", merging in {left_s / 60:.0f} min"
