"""Shows what happens at a coordinator: lines for people, or JSON lines (`edge.events`)."""

from coordinator.events.records import FleetEvent, PaceChanged
from edge.events import Event, Show


class Terminal:
    """Shows every event that is news.

    Args:
        show: Where to.
    """

    def __init__(self, show: Show) -> None:
        self._show = show

    def __call__(self, event: FleetEvent) -> None:
        """See `Observer`."""
        if not isinstance(event, PaceChanged) or event.is_news:
            self._show(Event(event.kind, event.text, event.facts))
