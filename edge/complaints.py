"""What is wrong, told to people: each kind rarely, with the count of what was left out.

Anybody may send what is worth a complaint, a thousand times a second and each time in other words. So a kind
is told at most once a minute, and of all kinds together 30 a minute; what was left out is counted and told
with the next one. Nothing of a stranger's words reaches a terminal but printable characters.
"""

import logging
from collections.abc import Callable

from converters.errors import TunefleetError
from converters.plain import plain
from edge.bucket import Bucket, Rate

LOG = logging.getLogger(__name__)
EVERY_S = 60.0  # at the earliest, a kind is told again
ALL_KINDS = Rate(per_s=30 / 60, burst=30)
MAX_KINDS = 1000
MAX_LENGTH = 500


class Complaints:
    """Tells faults.

    Args:
        tell: Gets each that is told.
        clock: Seconds of any beginning.
    """

    def __init__(self, tell: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._tell = tell
        self._clock = clock
        self._told_at: dict[str, float] = {}  # by kind
        self._left_out: dict[str, int] = {}  # by kind, since it was told
        self._num_crowded = 0  # of kinds that found no room at all
        self._lines = Bucket(ALL_KINDS, clock())

    def __call__(self, fault: str, kind: str | None = None) -> None:
        """Tells a fault, unless one of its kind was told a moment ago.

        Args:
            fault: In one line; what is longer than 500 characters is cut.
            kind: Of few, as strangers make up texts; by default the text itself.
        """
        self._is_told(fault, fault if kind is None else kind)

    def unforeseen(self, where: str, error: Exception) -> None:
        """Tells an error that ended the handling of one message, and nothing else.

        One that is no `TunefleetError` is a mistake in the program: its traceback is logged for debugging.

        Args:
            where: What was being handled.
            error: What came out of it.
        """
        name = type(error).__name__
        if isinstance(error, TunefleetError):
            self(f"{where}: left out: {error}", name)
        elif self._is_told(f"{where}: left out: {name}: {error}; this is a mistake in tunefleet", name):
            LOG.debug("%s: %s", where, name, exc_info=error)

    def _is_told(self, fault: str, kind: str) -> bool:
        now = self._clock()
        told_at = self._told_at.get(kind)
        if told_at is not None and 0 <= now - told_at < EVERY_S:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
        elif not self._lines.take(now):
            self._num_crowded += 1
        else:
            self._tell(plain(fault[:MAX_LENGTH]) + self._told_count(kind))
            if len(self._told_at) >= MAX_KINDS:
                self._told_at.clear()
                self._left_out.clear()
            self._told_at[kind] = now
            return True
        return False

    def _told_count(self, kind: str) -> str:
        """Returns what to say of what was left out, and forgets it."""
        alike, others = self._left_out.pop(kind, 0), self._num_crowded
        self._num_crowded = 0
        told = [f"{alike} more like it"] if alike else []
        told += [f"{others} of other kinds"] if others else []
        return f" (and {' and '.join(told)}, since the last time)" if told else ""
