"""When it is worth telling how far the next version is."""

from coordinator.events.pace import REPEAT_EVERY_S, FleetPace
from coordinator.events.records import PaceChanged
from coordinator.strategies.contract import Pace

CLOCK_SET_S = 5.0  # a clock that is further from where it would have come was set


class PaceNews:
    """Remembers the pace that was told last."""

    def __init__(self) -> None:
        self._told: FleetPace | None = None
        self._told_at = 0.0

    def next(self, pace: Pace, num_online: int, num_able: int, now: float, at: float) -> PaceChanged | None:
        """Takes what is waited for now, and returns what to tell of it.

        It is repeated every minute, as a sign of life, and when the machine's clock was set. People are told
        neither that, nor that an empty buffer follows a full one.

        Args:
            pace: What the strategy waits for.
            num_online: Devices.
            num_able: Of them, that can train some tier.
            now: Unix time in seconds, for those who read it.
            at: Seconds of any beginning, never set back.
        """
        due_at = now + pace.left_s if pace.have and pace.left_s is not None else None
        fresh, before = FleetPace(pace.have, pace.needed, num_online, num_able, due_at, now), self._told
        has_changed = before is None or fresh.facts != before.facts
        if before and not has_changed:
            elapsed_s = at - self._told_at
            is_set = abs(now - before.noted_at - elapsed_s) > CLOCK_SET_S
            if elapsed_s < REPEAT_EVERY_S and not is_set:
                return None
        self._told, self._told_at = fresh, at
        is_emptied = before is not None and fresh.have == 0 and fresh.facts[1:4] == before.facts[1:4]
        return PaceChanged(fresh, is_news=has_changed and not is_emptied)
