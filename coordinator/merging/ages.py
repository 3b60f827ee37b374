"""How long updates have waited, by a clock that is never set back.

The journal knows when an update came by the machine's own clock, which somebody may set by a day while it
waits. So that one is asked only how long an update had waited when it was first seen here, and bounded both
ways: it waited no negative time, and no longer than since everything was looked at before.
"""

import math
from collections.abc import Callable, Sequence

from coordinator.ledger.records import Update


class Ages:
    """The ages of the updates in one buffer.

    Args:
        clock: Unix time in seconds, in which they came.
        timer: Seconds of any beginning, never set back.
    """

    def __init__(self, clock: Callable[[], float], timer: Callable[[], float]) -> None:
        self._clock, self._timer = clock, timer
        self._looked_at = -math.inf
        self._since: dict[str, float] = {}  # by the timer

    def of(self, waiting: Sequence[Update]) -> list[float]:
        """Returns for how many seconds each of all that wait has waited."""
        now, unix = self._timer(), self._clock()
        elapsed_s = now - self._looked_at

        def began(update: Update) -> float:
            return now - min(max(unix - update.received_at, 0.0), elapsed_s)

        self._since = {one.id: self._since.get(one.id, began(one)) for one in waiting}
        self._looked_at = now
        return [now - self._since[one.id] for one in waiting]
