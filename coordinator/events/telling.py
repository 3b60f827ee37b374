"""Who is told what happens: an observer shows, counts or keeps it; the server knows none of them by name."""

from collections.abc import Callable, Sequence
from typing import Protocol

from coordinator.events.records import FleetEvent, Warned
from edge import complaints


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


class Complaints(complaints.Complaints):
    """Tells faults as warnings, each kind at most once a minute.

    Args:
        tell: Gets the warnings.
        clock: Seconds of any beginning.
    """

    def __init__(self, tell: Tell, clock: Callable[[], float]) -> None:
        super().__init__(lambda fault: tell(Warned(fault)), clock)
