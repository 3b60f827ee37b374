"""When it is worth telling how far the next version is."""

from coordinator.events.pace import REPEAT_EVERY_S, FleetPace
from coordinator.events.records import PaceChanged
from coordinator.strategies.contract import Pace


class PaceNews:
    """Remembers the pace that was told last."""

    def __init__(self) -> None:
        self._told: FleetPace | None = None

    def next(self, pace: Pace, num_online: int, num_able: int, now: float) -> PaceChanged | None:
        """Takes what is waited for now, and returns what to tell of it.

        It is repeated every minute, as a sign of life. People are told neither that, nor that an empty buffer
        follows a full one.
        """
        due_at = now + pace.left_s if pace.have and pace.left_s is not None else None
        fresh, before = FleetPace(pace.have, pace.needed, num_online, num_able, due_at, now), self._told
        has_changed = before is None or fresh.facts != before.facts
        if before and not has_changed and now - before.noted_at < REPEAT_EVERY_S:
            return None
        self._told = fresh
        is_emptied = before is not None and fresh.have == 0 and fresh.facts[1:4] == before.facts[1:4]
        return PaceChanged(fresh, is_news=has_changed and not is_emptied)
