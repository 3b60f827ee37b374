"""Which versions are still needed by somebody, so that their files stay past `keep_versions`.

An update is an increment to the version it began from: without that version's files it cannot be merged. A
version is held while an update that began from it waits in the buffer or is being received, and while a
device that downloaded it or trains on it may still send one: not for ever, but until the update would be too
stale, or the device was away for `hold_s`.
"""

from typing import Protocol

from coordinator.ledger.contract import Updates
from coordinator.ledger.head import Standing


class Devices(Protocol):
    """Who may still send an update."""

    def held(self, since: float) -> set[int]:
        """Returns the versions that devices hold of which something was heard since then."""
        ...


class Receiving(Protocol):
    """What is being received."""

    def base_versions(self) -> set[int]:
        """Returns what the updates under way were trained on."""
        ...


class Retention:
    """Says which versions must keep their files.

    Args:
        journal: Its buffer counts.
        devices: What they hold counts.
        receiving: What is being received counts.
        max_staleness: Staler updates are rejected.
        hold_s: How long a device may be away.
    """

    def __init__(
        self, journal: Updates, devices: Devices, receiving: Receiving, max_staleness: int, hold_s: float
    ) -> None:
        self._max_staleness = max_staleness
        self._hold_s = hold_s
        self._journal = journal
        self._devices = devices
        self._receiving = receiving

    def held(self, standing: Standing, at: float) -> set[int]:
        """Returns the versions that must keep their files once the next version is made.

        Args:
            standing: Where the fleet stands before it.
            at: Unix time in seconds.
        """
        under_way = self._receiving.base_versions() | self._devices.held(since=at - self._hold_s)
        timely = {
            version
            for version in under_way
            if version in standing.lineage and standing.staleness(version) < self._max_staleness
        }
        return timely | {update.base_version for update in self._journal.waiting()}
