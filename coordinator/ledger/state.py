"""What the coordinator remembers, in one folder that belongs to one coordinator of one fleet.

    journal.sqlite   devices, updates, versions (`coordinator.ledger.sqlite`)
    objects/         adapters by their sha256 (`coordinator.ledger.versions`)
    incoming/        headers and parts of updates under way (`coordinator.intake.open_uploads`)
    updates/         large payloads of accepted updates that are in no version yet, by their id
    identity.key     the coordinator's private key, readable by its owner only
    lock             held while a coordinator runs

Every write is atomic, so a coordinator that is killed at any point finds the state before or after it.
Reports and rollback work on the journal without the lock, also while a coordinator runs.
"""

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from coordinator.ledger.objects import FileObjects
from coordinator.ledger.payloads import Payloads
from coordinator.ledger.sqlite import SqliteJournal
from coordinator.ledger.versions import VersionStore
from edge.errors import MissingObject
from edge.protocol.signing import Signer
from edge.storage.disk import claim_folder
from edge.storage.identity import read_identity

OBJECTS, UPDATES = "objects", "updates"


@contextmanager
def open_ledger(folder: Path) -> Iterator[tuple[SqliteJournal, VersionStore]]:
    """Opens the journal and the versions of a state folder without its lock, also while a coordinator runs.

    Raises:
        StateError: It is no coordinator's.
    """
    with closing(SqliteJournal(folder)) as journal:
        yield journal, VersionStore(journal, FileObjects(folder / OBJECTS))


class CoordinatorState:
    """The state folder of a running coordinator; used as `with CoordinatorState(…) as state:`.

    Args:
        folder: Made where it is missing.
        fleet: The fleet it belongs to.

    Raises:
        StateError: On entering: another coordinator runs here, or the folder is another fleet's, of a newer
            version, or damaged.
        DiskRefused: On entering.
    """

    def __init__(self, folder: Path, fleet: str) -> None:
        self.folder = folder
        self.incoming = folder / "incoming"
        self.updates = folder / UPDATES
        self._fleet = fleet

    def __enter__(self) -> Self:
        self._lock = claim_folder(
            self.folder, (self.folder / OBJECTS, self.incoming, self.updates), "coordinator"
        )
        try:
            self.key = read_identity(self.folder, "restore it: devices have pinned it")
            self.journal = SqliteJournal(self.folder, self._fleet)
        except BaseException:
            self._lock.close()
            raise
        self.payloads = Payloads(self.journal, FileObjects(self.updates))
        self.versions = VersionStore(self.journal, FileObjects(self.folder / OBJECTS))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.journal.close()
        self._lock.close()

    def begin_session(self, at: float, heard: int = 0) -> Signer:
        """Begins a session: its epoch is later than every one before, also where the clock was set back.

        A restored journal remembers an early one, and the clock then is later, or what was heard is.

        Args:
            at: Unix time in seconds.
            heard: The latest epoch that the broker still has, signed by this coordinator's key.

        Raises:
            DiskRefused: It was not noted, and must not be used.
        """
        epoch = max(int(at * 1000), self.last_epoch + 1, heard + 1)
        self.journal.note("epoch", str(epoch))
        return Signer(self.key, epoch)

    @property
    def last_epoch(self) -> int:
        """The epoch of the session before, as far as this folder knows."""
        return int(self.journal.meta("epoch") or 0)

    def recover(self) -> list[str]:
        """Brings files and journal together after a kill; to be called before anything is received.

        Returns:
            Ids of updates whose payload is damaged or gone; they leave the buffer.
        """
        waiting = {update.id: update.sha256 for update in self.journal.waiting()}
        under_way = {path.stem for path in self.incoming.glob("*.header")}
        self.payloads.remove(self.payloads.names() - waiting.keys() - under_way)
        lost = [name for name, sha256 in waiting.items() if not self._holds(name, sha256)]
        if lost:
            self.journal.discard(lost, "hash-mismatch", "its payload on the coordinator's disk is damaged")
        return lost

    def _holds(self, payload: str, sha256: str) -> bool:
        try:
            return hashlib.sha256(self.payloads.get(payload)).hexdigest() == sha256
        except MissingObject:
            return False
