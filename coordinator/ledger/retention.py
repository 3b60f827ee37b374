"""Which versions are still needed by somebody, so that their files stay past `keep_versions`.

An update is an increment to the version it began from: without that version's files it cannot be merged. A
version is held while an update that began from it waits in the buffer or is being received, and while a
device that downloaded it or trains on it may still send one: not for ever, but until the update would be too
stale, or the device was away for `hold_s`.
"""

from collections.abc import Callable

from coordinator.ledger.contract import Updates
from coordinator.ledger.head import Standing


class Retention:
    """Says which versions must keep their files.

    Args:
        journal: Its buffer counts.
        held: The versions that devices hold of which something was heard in the last so many seconds.
        receiving: What the updates under way were trained on.
        max_staleness: Staler updates are rejected.
        hold_s: How long a device may be away.
    """

    def __init__(
        self,
        journal: Updates,
        held: Callable[[float], set[int]],
        receiving: Callable[[], set[int]],
        max_staleness: int,
        hold_s: float,
    ) -> None:
        self._journal, self._held, self._receiving = journal, held, receiving
        self._max_staleness, self._hold_s = max_staleness, hold_s

    def held(self, standing: Standing) -> set[int]:
        """Returns the versions that must stay once the one after `standing` is made."""
        timely = {
            version
            for version in self._receiving() | self._held(self._hold_s)
            if version in standing.lineage and standing.staleness(version) < self._max_staleness
        }
        return timely | {update.base_version for update in self._journal.waiting()}
