"""Faults that a coordinator lives with, told at a bounded rate: strangers must not fill a log."""

from collections.abc import Callable

from coordinator.events.observer import Tell
from coordinator.events.records import Warned

EVERY_S = 60.0
MAX_FAULTS = 1000


class Complaints:
    """Tells faults, the same one at most once a minute.

    Args:
        tell: Gets each as a warning.
        clock: Unix time in seconds.
    """

    def __init__(self, tell: Tell, clock: Callable[[], float]) -> None:
        self._tell = tell
        self._clock = clock
        self._told_at: dict[str, float] = {}

    def __call__(self, fault: str) -> None:
        """Tells a fault, unless it was told a moment ago."""
        now = self._clock()
        if len(self._told_at) >= MAX_FAULTS:
            self._told_at.clear()
        if now - self._told_at.get(fault, 0.0) >= EVERY_S:
            self._told_at[fault] = now
            self._tell(Warned(fault))
