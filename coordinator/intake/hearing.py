"""When something was heard of each device, by a clock that is never set back.

What an earlier session heard it knew by the machine's own clock, which may have been set meanwhile, and
while no coordinator was there nobody could be heard. Such a silence is bounded both ways: it is at least none
and at most half of what is asked for.
"""

from collections.abc import Callable, Iterable

from coordinator.ledger.records import Device


class Hearing:
    """The silence of one fleet's devices.

    Args:
        known: Those of earlier sessions.
        now: Unix time in seconds.
        timer: Seconds of any beginning, never set back.
    """

    def __init__(self, known: Iterable[Device], now: float, timer: Callable[[], float]) -> None:
        self._timer, self._begun_at = timer, timer()
        self._silent_s = {one.device: max(now - one.last_seen, 0.0) for one in known}  # at the beginning
        self._heard_at: dict[str, float] = {}

    def hear(self, device_id: str) -> None:
        """Notes that something of a device came."""
        self._heard_at[device_id] = self._timer()

    def is_within(self, device_id: str, within_s: float) -> bool:
        """Tells whether something was heard of a device in the last `within_s` seconds."""
        if device_id in self._heard_at:
            return self._timer() - self._heard_at[device_id] <= within_s
        silent_s = min(self._silent_s.get(device_id, within_s), within_s / 2)
        return silent_s + self._timer() - self._begun_at <= within_s
