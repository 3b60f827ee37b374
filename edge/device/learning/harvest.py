"""The end of a task: what was learnt goes into the spool, and the task out of the memory, in this order."""

import asyncio
from pathlib import Path

from converters.errors import AdapterError
from converters.formats.canonical import dump_adapter
from edge.device.session import Session
from edge.device.task import Learnt, Task, make_update
from edge.storage.disk import write_file
from edge.training.requests import Result


class Harvest:
    """What the tasks of one client come to."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._state = session.state

    async def bring_in(self, task: Task, dispatched: Path, result: Result) -> None:
        """Spools what a task has learnt, and closes it.

        Raises:
            DiskRefused: The task is open still, and may be brought in again.
        """
        device_id, terms = self._session.config.device_id, task.manifest.privacy
        residual = self._session.spool.residual(is_noised=terms.noised_here)
        try:
            learnt = await asyncio.to_thread(make_update, device_id, task, dispatched, result, residual)
        except AdapterError as error:
            self._session.say("warning", f"version {task.manifest.version}: training diverged: {error}")
        else:
            if learnt.personal is not None:  # before the spool: a task that is in there is never done again
                write_file(self._state.personal, dump_adapter(learnt.personal))
            self._session.budget.spend(task.key, terms, result.num_steps)  # before it may leave
            self._spool(learnt, task, result)
        self._close(
            task,
            tokens_per_s=result.num_tokens / result.seconds if result.seconds else None,
            micro_batch_tokens=result.micro_batch_tokens,
        )

    def close_spooled(self) -> bool:
        """Closes a task whose update lies in the spool: a kill or a full disk came just in between."""
        task = self._state.memory.task
        if task is None:
            return False
        manifest = task.manifest
        is_spooled = self._session.spool.holds(manifest.version, task.attempt, manifest.epoch)
        if is_spooled:
            self._close(task)
        return is_spooled

    def _spool(self, learnt: Learnt, task: Task, result: Result) -> None:
        header, manifest, budget = learnt.header, task.manifest, self._session.budget
        spent = f"; {budget.told}" if budget.told else ""
        self._session.spool.add(
            header,
            learnt.payload,
            learnt.residual,
            manifest.epoch,
            is_noised=manifest.privacy.noised_here,
        )
        self._session.say(
            "spooled",
            f"update {header.update[:8]} on version {header.base_version}: {header.size_bytes:,} bytes, "
            f"{result.num_tokens:,} tokens in {result.seconds:.1f} s, "
            f"loss {result.loss_before:.4f} to {result.loss_after:.4f}{spent}",
            update=header.update,
            base_version=header.base_version,
            size_bytes=header.size_bytes,
            num_tokens=result.num_tokens,
            seconds=result.seconds,
            loss_before=result.loss_before,
            loss_after=result.loss_after,
            **budget.facts(),
        )

    def _close(self, task: Task, **measured: float | None) -> None:
        manifest = task.manifest
        self._state.update(
            task=None,
            version=manifest.version,
            sha256=manifest.sha256,
            session=manifest.epoch,
            attempts=task.attempt + 1,
            **measured,
        )
        self._session.wakeups.something_to_send.set()
