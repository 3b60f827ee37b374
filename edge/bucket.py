"""Rates that are kept to: token buckets, one for whoever has a name. Pure; the time is handed in.

A bucket holds `burst` tokens and fills up again with so many a second (RFC 2697 calls it a meter). So what
comes rarely is never held up, and what comes for ever is held to the rate.
"""

from typing import NamedTuple

MAX_NAMES = 10_000


class Rate(NamedTuple):
    """How much may come."""

    per_s: float
    burst: float  # at once, after a pause


class Bucket:
    """What one may take.

    Args:
        rate: How fast it fills; it begins full.
        now: Seconds of any beginning, as below.
    """

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._held = rate.burst
        self._at = now

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Takes `amount` where it is there; else nothing, and returns False."""
        if amount > self.held(now):
            return False
        self._held -= amount
        return True

    def held(self, now: float) -> float:
        """Returns what is there; a clock that was set back gives nothing and takes nothing."""
        filled = self._held + max(0.0, now - self._at) * self._rate.per_s
        self._held, self._at = min(self._rate.burst, filled), now
        return self._held


class Buckets:
    """A bucket for each name, of bounded memory.

    Where there are too many names the one heard longest ago is forgotten, which gives it a full bucket: who
    has as many names as that is held to a rate for each of them anyway.

    Args:
        rate: Of every one.
        max_names: That are remembered.
    """

    def __init__(self, rate: Rate, max_names: int = MAX_NAMES) -> None:
        self._rate = rate
        self._max_names = max_names
        self._buckets: dict[str, Bucket] = {}  # the one heard longest ago comes first

    def take(self, name: str, now: float, amount: float = 1.0) -> bool:
        """Takes `amount` of a name's where it is there; else nothing, and returns False."""
        return self._of(name, now).take(now, amount)

    def held(self, name: str, now: float) -> float:
        """Returns what is there for a name."""
        return self._of(name, now).held(now)

    def _of(self, name: str, now: float) -> Bucket:
        bucket = self._buckets.pop(name, None) or Bucket(self._rate, now)
        if len(self._buckets) >= self._max_names:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[name] = bucket
        return bucket
