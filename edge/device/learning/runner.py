"""Runs the worker on a task; where its process dies, the next one goes on from the last checkpoint."""

import asyncio
import itertools
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from converters.formats.canonical import dump_adapter, load_adapter
from edge.device.session import Session
from edge.device.task import Task, make_plan, start_adapter, task_seed
from edge.device.telemetry import ProgressReporter
from edge.errors import BackendError, EdgeError, MissingExtra, OutOfMemory, StateError, UnsupportedRecipe
from edge.storage.disk import write_file
from edge.training.requests import Result, Training
from edge.training.worker.supervisor import Trainer

START = "start.safetensors"  # in the task's folder: what it begins with, where that is not as dispatched
MAX_FAILURES = 3  # of the worker, one after the other, in one task


class TaskRunner:
    """The training of one task after another.

    Args:
        session: The running client's.
        worker: Entered before `run`.
        sleep: Waits between a death of the worker and the next try.
    """

    def __init__(
        self, session: Session, worker: Trainer, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    ) -> None:
        self._session = session
        self._state = session.state
        self._worker = worker
        self._sleep = sleep
        self._reporter = ProgressReporter(session)
        self._is_training = False

    async def run(self, task: Task, dispatched: Path) -> Result:
        """Trains, and returns what came of it.

        Raises:
            BackendError, StateError, DataError: Training is not possible.
        """
        for num_failures in itertools.count(1):
            self._is_training = True
            try:
                order = self._order(task, dispatched)
                return await self._worker.train(order, self._reporter.of(task.manifest))
            except (MissingExtra, OutOfMemory, UnsupportedRecipe):
                raise
            except (BackendError, StateError) as error:
                if num_failures > MAX_FAILURES:
                    raise
                self._session.say("warning", f"{error}; {self._recover(task, error)}")
            finally:
                self._is_training = False
            await self._sleep(num_failures)
        raise AssertionError  # itertools.count never ends

    async def stop(self) -> bool:
        """Ends a task under way with a checkpoint; tells whether there was one."""
        if self._is_training:
            await self._worker.stop()
            return True
        return False

    async def close(self) -> None:
        """Gives up the telemetry that has not gone out."""
        await self._reporter.close()

    def _recover(self, task: Task, error: EdgeError) -> str:
        """Drops a checkpoint that is damaged, or of data that has changed since; tells how it goes on."""
        if isinstance(error, StateError):
            shutil.rmtree(self._state.task_folder(task))
            return "training from the beginning"
        return "going on from the last checkpoint"

    def _order(self, task: Task, dispatched: Path) -> Training:
        config = self._session.config
        sizes = filter(None, (self._state.memory.micro_batch_tokens, config.micro_batch_tokens))
        plan = make_plan(
            task.manifest.recipe,
            task_seed(config.device_id, task),
            min(sizes, default=0),
            config.checkpoint_every_s,
            task.manifest.privacy,
        )
        folder = self._state.task_folder(task)
        return Training(
            adapter=str(self._start(task, dispatched, folder)),
            data=config.data,
            plan=plan,
            folder=str(folder),
            slowdown=config.slowdown,
        )

    def _start(self, task: Task, dispatched: Path, folder: Path) -> Path:
        """Returns the adapter that the task begins with; the same one however often it is begun."""
        if task.manifest.recipe.keeps == "none":
            return dispatched
        start, path = folder / START, self._state.personal
        if not start.exists():
            personal = load_adapter(path) if path.exists() else None
            adapter = start_adapter(task.manifest.recipe, load_adapter(dispatched), personal)
            write_file(start, dump_adapter(adapter))
        return start
