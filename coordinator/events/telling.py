"""Who is told what happens: an observer shows, counts or keeps it; the server knows none of them by name."""

from collections.abc import Callable, Sequence
from typing import Protocol

from coordinator.events.records import FleetEvent, Warned

EVERY_S = 60.0  # at the earliest, a fault is told again: strangers must not fill a log
MAX_FAULTS = 1000


class Observer(Protocol):
    """Gets every event; what it raises goes to whoever told the event."""

    def __call__(self, event: FleetEvent, /) -> None:
        """Takes one event."""


Tell = Callable[[FleetEvent], None]


def teller(observers: Sequence[Observer]) -> Tell:
    """Returns what tells an event to all `observers`, in their order."""

    def tell(event: FleetEvent) -> None:
        for observe in observers:
            observe(event)

    return tell


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
