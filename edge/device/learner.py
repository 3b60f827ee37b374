"""One task after another: a version is downloaded, trained on, and what was learnt is spooled.

The task under way stands in the state folder from its first step to its last. Each step finds on the disk
what an earlier try at it left: chunks, checkpoints, the spooled update. So a step that is cut off, by a kill
or by a full disk, is simply done again.
"""

import asyncio
import itertools
import shutil
from pathlib import Path

from converters.errors import AdapterError
from converters.formats.canonical import dump_adapter, load_adapter
from edge.device.assignment import Assignment, Update, make_plan, make_update, start_adapter, task_seed
from edge.device.blobs import Blobs
from edge.device.epochs import Epochs
from edge.device.offers import Offers
from edge.device.proof import Proof
from edge.device.session import Session
from edge.device.telemetry import ProgressReporter
from edge.errors import (
    BackendError,
    DiskFull,
    EdgeError,
    MissingExtra,
    OutOfMemory,
    StateError,
    UnsupportedRecipe,
)
from edge.protocol.signing import sign_message
from edge.storage.disk import write_file
from edge.storage.parts import PartFile
from edge.training.requests import Result, Training
from edge.training.worker.supervisor import Trainer

START = "start.safetensors"  # in the task's folder: what it begins with, where that is not as dispatched
MAX_FAILURES = 3  # of the worker, one after the other, in one task
MAX_PAUSE_S = 60.0


class Learner:
    """The learning loop of one client."""

    def __init__(self, session: Session, worker: Trainer, key: bytes) -> None:
        self._session = session
        self._state = session.state
        self._worker = worker
        self._key = key
        self._is_training = False
        self._is_stopping = False
        self._blobs = Blobs(session)
        self._proof = Proof(session, self._blobs)
        self._offers = Offers(session, self._proof)
        self._epochs = Epochs(session, self._end_training)
        self._reporter = ProgressReporter(session)

    async def run(self) -> None:
        """Trains until `stop`, or until `max_tasks` are done and receipted.

        Raises:
            BaseModelError: The fleet trains another base model.
            DataError, BackendError, ConfigError: Training is not possible.
        """
        try:
            await self._session.transport.subscribe(self._session.topics.version("+"))
            await self._learn(self._session.config.max_tasks)
        finally:
            await self._reporter.close()

    async def follow(self) -> None:
        """Follows the coordinator for ever; a task that is of no use to it any more is dropped."""
        await self._epochs.run()

    async def stop(self) -> bool:
        """Ends a task under way with a checkpoint; whether `run` will now end by itself."""
        self._is_stopping = True
        return await self._end_training()

    async def _end_training(self) -> bool:
        if self._is_training:
            await self._worker.stop()
            return True
        return False

    async def _learn(self, max_tasks: int) -> None:
        num_tasks = 0
        while not self._is_stopping and (max_tasks == 0 or num_tasks < max_tasks):
            num_tasks += await self._patient_task()
        while not self._is_stopping and self._session.spool.entries():
            await self._offers.news()

    async def _patient_task(self) -> bool:
        """One task; a full disk is waited for."""
        pause_s = 1.0
        while True:
            try:
                return await self._task()
            except DiskFull as error:
                self._session.say("warning", f"{error}; trying again in {pause_s:.0f} s")
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _task(self) -> bool:
        """Whether a task was done; False when it was stopped or given up."""
        if self._close_spooled():
            return True
        task = self._state.memory.task or await self._offers.next_task()
        is_ours = await self._proof.holds(task.manifest)  # the model may be another than before a restart
        dispatched = await self._fetch(task) if is_ours else None
        result = await self._train(task, dispatched) if dispatched and not self._epochs.loss(task) else None
        if dispatched is None or result is None or self._epochs.loss(task):
            self._drop(task)
            return False
        if result.is_complete:
            await self._spool(task, dispatched, result)
        return result.is_complete

    def _drop(self, task: Assignment) -> None:
        if reason := self._epochs.loss(task):
            self._session.say("dropped", reason, version=task.manifest.version)
        self._state.update(task=None)

    async def _fetch(self, task: Assignment) -> Path | None:
        """The version's adapter on the disk; None when it stopped coming and there is a newer version."""
        manifest = task.manifest
        final = self._state.versions / f"{manifest.sha256}.safetensors"
        if final.exists():
            return final
        for other in self._state.versions.iterdir():
            if not other.name.startswith(manifest.sha256):
                other.unlink()
        part = PartFile(
            final.with_suffix(".part"), manifest.size_bytes, manifest.chunk_bytes, manifest.sha256
        )
        what = f"version {manifest.version}"
        while not await self._blobs.fetch(part, final, what, version=manifest.version):
            newest = self._session.inbox.choose(self._session.config.max_rank)
            if self._epochs.loss(task) or (newest and newest.version > manifest.version):
                part.discard()
                return None
        return final

    async def _train(self, task: Assignment, dispatched: Path) -> Result:
        """Runs the worker; where its process dies, the next one goes on from the last checkpoint."""
        for num_failures in itertools.count(1):
            self._is_training = True
            try:
                order = self._order(task, dispatched)
                return await self._worker.train(order, self._reporter.of(task.manifest.version))
            except (MissingExtra, OutOfMemory, UnsupportedRecipe):
                raise
            except (BackendError, StateError) as error:
                if num_failures > MAX_FAILURES:
                    raise
                self._session.say("warning", f"{error}; {self._recover(task, error)}")
            finally:
                self._is_training = False
            await asyncio.sleep(num_failures)
        raise AssertionError  # itertools.count never ends

    def _recover(self, task: Assignment, error: EdgeError) -> str:
        """A checkpoint that is damaged, or of data that has changed since, is of no use any more."""
        if isinstance(error, StateError):
            shutil.rmtree(self._state.task_folder(task))
            return "training from the beginning"
        return "going on from the last checkpoint"

    def _order(self, task: Assignment, dispatched: Path) -> Training:
        config = self._session.config
        sizes = filter(None, (self._state.memory.micro_batch_tokens, config.micro_batch_tokens))
        plan = make_plan(
            task.manifest.recipe,
            task_seed(config.device_id, task),
            min(sizes, default=0),
            config.checkpoint_every_s,
        )
        folder = self._state.task_folder(task)
        return Training(
            adapter=str(self._start(task, dispatched, folder)),
            data=config.data,
            plan=plan,
            folder=str(folder),
            slowdown=config.slowdown,
        )

    def _start(self, task: Assignment, dispatched: Path, folder: Path) -> Path:
        """The adapter that the task begins with; the same one however often it is begun."""
        if task.manifest.recipe.keeps == "none":
            return dispatched
        start, path = folder / START, self._state.personal
        if not start.exists():
            personal = load_adapter(path) if path.exists() else None
            adapter = start_adapter(task.manifest.recipe, load_adapter(dispatched), personal)
            write_file(start, dump_adapter(adapter))
        return start

    async def _spool(self, task: Assignment, dispatched: Path, result: Result) -> None:
        try:
            update = await asyncio.to_thread(
                make_update,
                self._session.config.device_id,
                task,
                dispatched,
                result,
                self._session.spool.residual(),
            )
        except AdapterError as error:
            self._session.say("warning", f"version {task.manifest.version}: training diverged: {error}")
        else:
            if update.personal is not None:  # before the spool: a task that is in there is never done again
                write_file(self._state.personal, dump_adapter(update.personal))
            self._take_in(update, task.manifest.epoch)
        self._close(
            task,
            tokens_per_s=result.num_tokens / result.seconds if result.seconds else None,
            micro_batch_tokens=result.micro_batch_tokens,
        )

    def _take_in(self, update: Update, epoch: int) -> None:
        header = update.header
        signed = sign_message(header, self._key)
        self._session.spool.add(header, signed, update.payload, update.residual, epoch)
        self._session.say(
            "spooled",
            f"update {header.update[:8]} on version {header.base_version}: {header.size_bytes:,} bytes, "
            f"{header.num_tokens:,} tokens in {header.seconds:.1f} s, "
            f"loss {header.loss_before:.4f} to {header.loss_after:.4f}",
            update=header.update,
            base_version=header.base_version,
            size_bytes=header.size_bytes,
            num_tokens=header.num_tokens,
            seconds=header.seconds,
            loss_before=header.loss_before,
            loss_after=header.loss_after,
        )

    def _close_spooled(self) -> bool:
        """Closes a task whose update lies in the spool: a kill or a full disk came just in between."""
        task = self._state.memory.task
        if task is None or not self._session.spool.holds(
            task.manifest.version, task.attempt, task.manifest.epoch
        ):
            return False
        self._close(task)
        return True

    def _close(self, task: Assignment, **measured: float | None) -> None:
        manifest = task.manifest
        self._state.update(
            task=None,
            version=manifest.version,
            sha256=manifest.sha256,
            session=manifest.epoch,
            attempts=task.attempt + 1,
            **measured,
        )
        self._session.spooled.set()
