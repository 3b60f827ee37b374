"""What each device may still ask of the coordinator now, so that what one does never slows the others.

It is asked after a message has proved whose it is: a stranger can use up nobody's allowance. What is refused
here costs no signature and no write. All are told in words that go into a receipt or a complaint.
"""

from collections.abc import Callable

from coordinator.ledger.contract import Updates
from coordinator.limits import MIB, Limits
from edge.bucket import Buckets, Rate
from edge.protocol.messages import Want

DAY_S = 86400.0
BURSTS = 6  # what may come in ten seconds may come at once


class Allowance:
    """Rates of each device, and the room in the buffer.

    Args:
        limits: In force.
        journal: Holds the buffer.
        clock: Seconds of any beginning, never set back.
        buffer_size: Updates that make a version, where that is configured.
        chunk_bytes: Of the files that devices download.
        largest_bytes: Of the files that devices download.
    """

    def __init__(
        self,
        limits: Limits,
        journal: Updates,
        clock: Callable[[], float],
        *,
        buffer_size: int | None = None,
        chunk_bytes: int,
        largest_bytes: int = 0,
    ) -> None:
        self._limits, self._journal, self._clock = limits, journal, clock
        self._chunk_bytes = chunk_bytes
        self._max_own = max(limits.max_waiting_per_device, buffer_size or 0)
        self._messages = Buckets(_per_minute(limits.messages_per_minute))
        self._headers = Buckets(_per_minute(limits.headers_per_minute))
        self._telemetry = Buckets(_per_minute(limits.telemetry_per_minute))
        self._rejections = Buckets(Rate(limits.rejections_per_day / DAY_S, limits.rejections_per_day))
        burst = max(limits.want_burst_mib * MIB, 4.0 * largest_bytes)
        self._wants = Buckets(Rate(limits.want_mib_per_s * MIB, burst))

    def hears(self, device_id: str) -> bool:
        """Tells whether a message of a device is worth a look at its signature."""
        return self._messages.held(device_id, self._clock()) >= 1.0

    def count(self, device_id: str) -> None:
        """Counts a message that has proved to be a device's: strangers use up nobody's allowance."""
        self._messages.take(device_id, self._clock())

    def hears_header(self, device_id: str) -> bool:
        """Tells whether a header of a device is looked at."""
        return self._headers.take(device_id, self._clock())

    def hears_telemetry(self, device_id: str) -> bool:
        """Tells whether a device's progress is looked at."""
        return self._telemetry.take(device_id, self._clock())

    def lists_rejection(self, device_id: str) -> bool:
        """Tells whether the journal keeps a rejected update of a device; else it is counted."""
        return self._rejections.take(device_id, self._clock())

    def serves(self, device_id: str, want: Want) -> bool:
        """Tells whether chunks are published because a device asks for them."""
        num_chunks = min(want.window, sum(max(0, end - start) for start, end in want.ranges))
        return self._wants.take(device_id, self._clock(), num_chunks * self._chunk_bytes)

    def crowded(self, device_id: str, size_bytes: int) -> str:
        """Returns why the buffer has no room for an update of a device; nothing where it has."""
        limits, backlog = self._limits, self._journal.backlog(device_id)
        if backlog.num_own >= self._max_own:
            return f"{backlog.num_own} updates of {device_id} wait to be merged, as many as a device may have"
        if backlog.num_updates >= limits.max_waiting:
            return f"{backlog.num_updates} updates wait to be merged, as many as may"
        if backlog.num_updates and backlog.num_bytes + size_bytes > limits.max_waiting_bytes:
            return f"updates of {backlog.num_bytes} bytes wait to be merged, as much as may"
        return ""


def _per_minute(number: int) -> Rate:
    return Rate(number / 60, max(1.0, number / BURSTS))
