"""Shows what happens at a coordinator: lines for people, or JSON lines (`edge.events`).

What devices cause is shown in bounded numbers: a device that comes and goes, or has one update after the
other rejected, fills nobody's disk. What was left out is counted, and told.
"""

import time
from collections import Counter
from collections.abc import Callable

from coordinator.events.records import FleetEvent, PaceChanged
from edge.bucket import Buckets, Rate
from edge.events import Event, Show

BOUNDED = ("joined", "online", "offline", "rejected", "refused")  # kinds of which any device may cause many
RATE = Rate(per_s=1.0, burst=100.0)  # of lines of a kind


class Terminal:
    """Shows every event that is news.

    Args:
        show: Where to.
        timer: Seconds of any beginning, never set back.
    """

    def __init__(self, show: Show, timer: Callable[[], float] = time.monotonic) -> None:
        self._show = show
        self._timer = timer
        self._lines = Buckets(RATE)
        self._left_out: Counter[str] = Counter()

    def __call__(self, event: FleetEvent) -> None:
        """See `Observer`."""
        if isinstance(event, PaceChanged) and not event.is_news:
            return
        if event.kind in BOUNDED and not self._lines.take(event.kind, self._timer()):
            self._left_out[event.kind] += 1
            return
        if left_out := self._left_out.pop(event.kind, 0):
            told = f"{left_out} lines of this kind were left out: {event.kind}"
            self._show(Event("warning", told, {"kind": event.kind, "left_out": left_out}))
        self._show(Event(event.kind, event.text, event.facts))
