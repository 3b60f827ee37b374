"""One task after another: a version is downloaded, trained on, and what was learnt is spooled.

The task under way stands in the state folder from its first step to its last. Each step finds on the disk
what an earlier try at it left: chunks, checkpoints, the spooled update. So a step that is cut off, by a kill
or by a disk that says no, is simply done again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from edge.device.disk_wait import until_the_disk_takes
from edge.device.epochs import Epochs
from edge.device.learning.blobs import Blobs
from edge.device.learning.harvest import Harvest
from edge.device.learning.offers import Offers, refusal
from edge.device.learning.proof import Proof
from edge.device.learning.runner import TaskRunner
from edge.device.session import Session
from edge.device.task import Task
from edge.protocol.messages import Blob
from edge.protocol.rights import OLD_ROOT
from edge.training.worker.supervisor import Trainer

T = TypeVar("T")


class Learner:
    """The learning loop of one client.

    Args:
        session: The running client's.
        worker: What trains.
        sleep: Waits for a disk that says no.
    """

    def __init__(
        self, session: Session, worker: Trainer, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    ) -> None:
        self._session = session
        self._state = session.state
        self._sleep = sleep
        self._is_stopping = False
        self._blobs = Blobs(session)
        self._proof = Proof(session, self._blobs)
        self._offers = Offers(session, self._proof)
        self._runner = TaskRunner(session, worker)
        self._harvest = Harvest(session)
        self._epochs = Epochs(session, self._runner.stop)

    async def run(self) -> None:
        """Trains until `stop`, or until `max_tasks` are done and receipted.

        Raises:
            BaseModelError: The fleet trains another base model.
            DataError, BackendError, ConfigError: Training is not possible.
        """
        try:
            await self._session.transport.subscribe(self._session.topics.version("+"))
            await self._session.transport.subscribe(f"{OLD_ROOT}/{self._session.config.fleet}/version/+")
            await self._learn(self._session.config.max_tasks)
        finally:
            await self._runner.close()

    async def follow(self) -> None:
        """Follows the coordinator for ever; a task that is of no use to it any more is dropped."""
        await self._epochs.run()

    async def keep(self) -> None:
        """Notes for ever how far the coordinator has come."""
        await self._epochs.keep()

    async def stop(self) -> bool:
        """Ends a task under way with a checkpoint; tells whether `run` will now end by itself."""
        self._is_stopping = True
        return await self._runner.stop()

    async def _learn(self, max_tasks: int) -> None:
        num_tasks = 0
        while not self._is_stopping and (max_tasks == 0 or num_tasks < max_tasks):
            num_tasks += await self._patiently(self._task)
        await self._patiently(self._empty_spool)

    async def _patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        """Does one step; a disk that says no is waited for."""
        return await until_the_disk_takes(step, self._session.warn, self._sleep)

    async def _empty_spool(self) -> None:
        while not self._is_stopping and self._session.spool.entries():
            await self._offers.changed()

    async def _task(self) -> bool:
        """Tells whether a task was done; False when it was stopped or given up."""
        if self._harvest.close_spooled():
            return True
        task = self._state.memory.task
        if task is None:
            task, is_ours = await self._offers.next_task(), True
        elif reason := refusal(self._session.budget, task):  # the settings are others than before a restart
            self._session.say("dropped", f"version {task.manifest.version}: {reason}")
            return self._drop(task)
        else:  # the model may be another than before a restart
            is_ours = await self._proof.holds(task.manifest)
        dispatched = await self._fetch(task) if is_ours else None
        if dispatched is None or self._epochs.loss(task):
            return self._drop(task)
        result = await self._runner.run(task, dispatched)
        if self._epochs.loss(task):
            return self._drop(task)
        if result.is_complete:
            await self._harvest.bring_in(task, dispatched, result)
        return result.is_complete

    def _drop(self, task: Task) -> bool:
        if reason := self._epochs.loss(task):
            self._session.say("dropped", reason, version=task.manifest.version)
        self._state.update(task=None)
        return False

    async def _fetch(self, task: Task) -> Path | None:
        """Returns the version's adapter on the disk; None when it stopped coming and a newer one is there."""
        manifest = task.manifest
        final = self._state.versions / f"{manifest.sha256}.safetensors"
        if final.exists():
            return final
        for other in self._state.versions.iterdir():
            if not other.name.startswith(manifest.sha256):
                other.unlink()

        def is_obsolete() -> bool:
            newest = self._session.inbox.choose(self._session.config.max_rank)
            return bool(self._epochs.loss(task) or (newest and newest.version > manifest.version))

        blob = Blob(sha256=manifest.sha256, root=manifest.root, size_bytes=manifest.size_bytes)
        what = f"version {manifest.version}"
        return await self._blobs.fetch(
            blob, manifest.chunk_bytes, final, what, is_obsolete, version=manifest.version
        )
