"""Which versions are still needed by somebody, so that their files stay past `keep_versions`.

An update is an increment to the version it began from: without that version's files it cannot be merged. A
version is held while an update that began from it waits in the buffer or is being received, and while a
device that downloaded it or trains on it may still send one: not for ever, but until the update would be too
stale, or the device was away for `hold_s`.
"""

from coordinator.intake.admission import Present
from coordinator.intake.open_uploads import Uploads
from coordinator.intake.roster import Roster
from coordinator.ledger.journal import Journal


class Holding:
    """Who holds what.

    Args:
        journal: Its buffer counts.
        roster: Its devices count.
        uploads: What is being received counts.
        max_staleness: Staler updates are rejected.
        hold_s: How long a device may be away.
    """

    def __init__(
        self, journal: Journal, roster: Roster, uploads: Uploads, max_staleness: int, hold_s: float
    ) -> None:
        self._max_staleness = max_staleness
        self._hold_s = hold_s
        self._journal = journal
        self._roster = roster
        self._uploads = uploads

    def versions(self, present: Present, at: float) -> set[int]:
        """The versions that must keep their files once the next version is made.

        Args:
            present: Where the fleet stands before it.
            at: Unix time in seconds.
        """
        under_way = self._uploads.base_versions() | self._roster.held(since=at - self._hold_s)
        timely = {
            version
            for version in under_way
            if version in present.lineage and present.staleness(version) < self._max_staleness
        }
        return timely | {update.base_version for update in self._journal.waiting()}
