"""How a device follows its coordinator from one session to the next, also back to an older version.

Every session of the coordinator has a later epoch than the one before, and signs it into its manifests. Where
a later epoch announces a lower version, or another version of the same number, the coordinator's state was
restored from a backup: what this device has beyond it is of no use, and the task in hand is dropped. An
earlier epoch never counts again, over restarts too, so nobody takes a device back by sending an old manifest.

What was accepted after the backup is forgotten, which the device sees by the numbers that receipts have in
the coordinator's journal. Then it counts its attempts anew: on the version that is current again the fleet
may have nothing of it.
"""

from collections.abc import Awaitable, Callable

from edge.device.session import Session
from edge.device.task import Task
from edge.errors import DiskRefused

FORGOTTEN = (
    "the coordinator has forgotten updates of this device (its state was restored); its attempts count anew"
)


class Epochs:
    """The following side of one client.

    Args:
        session: The running client's.
        end_training: Ends a task under way with a checkpoint.
    """

    def __init__(self, session: Session, end_training: Callable[[], Awaitable[object]]) -> None:
        self._session = session
        self._state = session.state
        self._end_training = end_training

    async def run(self) -> None:
        """Follows for ever; what was asked of the earlier session is asked again of the later."""
        session, inbox, wakeups = self._session, self._session.inbox, self._session.wakeups
        while True:
            await wakeups.epoch_turned.wait()
            wakeups.epoch_turned.clear()
            session.downloader.interrupt()
            session.uploader.interrupt()
            is_forgotten = self._remember()
            task = self._state.memory.task
            if task and self.loss(task):
                await self._end_training()
            elif not task and inbox.seen[1] < inbox.left:
                session.say("warning", self._return(), version=inbox.seen[1])
            elif is_forgotten:
                session.say("warning", FORGOTTEN, version=inbox.seen[1])
            wakeups.offers_changed.set()

    async def keep(self) -> None:
        """Writes down how far the coordinator has come, for ever: no restart may go back behind it."""
        session, inbox, wakeups = self._session, self._session.inbox, self._session.wakeups
        while True:
            await wakeups.version_rose.wait()
            wakeups.version_rose.clear()
            memory = self._state.memory
            is_noted = inbox.seen <= (memory.epoch, memory.newest)
            if memory.coordinator_key is None or inbox.seen[0] != memory.epoch or is_noted:
                continue  # a turn of the epoch is noted by `run`, a key with the first task
            try:
                self._state.update(newest=inbox.seen[1], heard=dict(inbox.heard))
            except DiskRefused as error:  # the next version is noted
                session.warn(str(error))

    def loss(self, task: Task) -> str:
        """Returns why a task is of no use to the coordinator as it is now; empty where it may be."""
        mine, now = task.manifest, self._session.inbox.rival(task.manifest)
        if now is None or now.epoch <= mine.epoch:
            return ""
        if now.version < mine.version:
            return f"{self._return()}; the task on version {mine.version} is of no use"
        if now.version == mine.version and now.tier == mine.tier and now.sha256 != mine.sha256:
            return (
                f"the coordinator's state was restored, and version {now.version} is another one now; "
                "the task on the earlier one is of no use"
            )
        return ""

    def _return(self) -> str:
        version = self._session.inbox.seen[1]
        return f"the coordinator went back to version {version} (its state was restored)"

    def _remember(self) -> bool:
        """Notes the epoch, once it is known whose: the key is pinned with the first task.

        Returns:
            Whether the coordinator has forgotten what it accepted of this device.
        """
        inbox, memory = self._session.inbox, self._state.memory
        if memory.coordinator_key is None:
            return False
        # Receipts may be faster than the manifest: what this very session has told is not forgotten.
        is_forgotten = memory.seq > inbox.known and memory.seq_epoch < inbox.seen[0]
        anew = {"version": -1, "sha256": "", "attempts": 0, "seq": inbox.known} if is_forgotten else {}
        try:
            self._state.update(epoch=inbox.seen[0], newest=inbox.seen[1], heard=dict(inbox.heard), **anew)
        except DiskRefused as error:  # the next task notes the epoch
            self._session.warn(str(error))
        return is_forgotten
