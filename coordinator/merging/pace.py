"""How far the next version is: told when it changes, and noted in the journal for `status`."""

import math

import msgspec
from msgspec import Struct

from coordinator.ledger.journal import Journal
from coordinator.strategies.base import Pace

KEY = "pace"  # in the journal
NOTE_EVERY_S = 60.0
SILENT_S = 2.5 * NOTE_EVERY_S  # a coordinator that noted nothing for so long was killed


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
        """Whether the coordinator that noted it seems to run."""
        return now - self.noted_at < SILENT_S


class PaceTeller:
    """Notes each change of pace.

    Args:
        journal: Where `status` finds it.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._noted: FleetPace | None = None

    def note(self, pace: Pace, num_online: int, num_able: int, now: float) -> FleetPace | None:
        """Takes what is waited for now.

        Returns:
            What to tell: None where nothing changed, or only an empty buffer follows a full one.

        Raises:
            DiskFull: It was not noted.
        """
        due_at = now + pace.left_s if pace.have and pace.left_s is not None else None
        fresh, before = FleetPace(pace.have, pace.needed, num_online, num_able, due_at, now), self._noted
        is_news = before is None or fresh.facts != before.facts
        if is_news or (before and now - before.noted_at >= NOTE_EVERY_S):
            self._journal.note(KEY, msgspec.json.encode(fresh).decode())
            self._noted = fresh
        is_told_already = before is not None and fresh.have == 0 and fresh.facts[1:4] == before.facts[1:4]
        return fresh if is_news and not is_told_already else None

    def close(self) -> None:
        """Takes the note away: nothing is waited for any more.

        Raises:
            DiskFull: It is still there.
        """
        self._journal.note(KEY, None)


def read_pace(journal: Journal) -> FleetPace | None:
    """What the coordinator of a state folder waits for; None where none runs, as far as the journal knows."""
    noted = journal.meta(KEY)
    return msgspec.json.decode(noted, type=FleetPace) if noted else None


def describe_pace(pace: FleetPace, now: float) -> str:
    """One line, as `1 of 4 updates, 1 device online, merging in 40 s`."""
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
