"""The supervisor of the worker process: starts it, talks to it, and outlives its death.

A process that is killed for want of memory, or dies in a library, ends one call and not the client: the next
call starts a new process, and training goes on from the task's last checkpoint.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec
from msgspec import structs

import converters.errors
import edge.errors
from converters.errors import TunefleetError
from edge.errors import BackendError, OutOfMemory
from edge.training.backends import BackendName, resolve_backend
from edge.training.backends.base import Precision
from edge.training.dataset import DataSource
from edge.training.packing import WIDTH_STEP
from edge.training.task import (
    Evaluation,
    Failed,
    Generation,
    Loaded,
    Progress,
    Reply,
    Request,
    Result,
    Scoring,
    Stop,
    Task,
    Texts,
)

__all__ = ["DataSource", "Evaluation", "Progress", "Result", "Task", "Worker"]

LINE_BYTES = 64 << 20  # a long run's result holds the loss of every step
LAST_WORDS = 8  # lines of stderr
CLOSING_S = 30.0  # for a checkpoint; a process that is still there then is killed
_NOT_PLAIN = ("MissingExtra", "Rejected")  # built from more than a message
VMSTAT = Path("/proc/vmstat")
R = TypeVar("R", Loaded, Result, Evaluation, Texts)


class Worker:
    """A base model loaded in a process of its own, started when it is first asked.

    Calls wait for one another. Used as `async with Worker(base) as worker:`.

    Args:
        base: Folder of the base model.
        backend: `auto` chooses by machine and base.
        precision: Of the forward and backward pass.
    """

    def __init__(
        self, base: Path | str, backend: BackendName = "auto", precision: Precision = "auto"
    ) -> None:
        self._base, self._backend, self._precision = str(base), backend, precision
        self._child: _Child | None = None
        self._turn = asyncio.Lock()
        self._is_training = self._wants_stop = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        child, self._child = self._child, None
        if child:
            await child.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child, where one runs."""
        return self._child.pid if self._child else None

    async def load(self) -> Loaded:
        """Starts the process and loads the base model, where that is not done yet.

        Raises:
            MissingExtra: The backend's library is not installed.
            BaseModelError: The base model cannot be loaded.
        """
        async with self._turn:
            return (await self._running()).loaded

    async def train(self, task: Task, on_progress: Callable[[Progress], None] = lambda _: None) -> Result:
        """Trains, from the checkpoint in the task's folder where there is one.

        A process that was killed for want of memory is started again with half the micro-batch.

        Raises:
            OutOfMemory: Not even one row at a time fits.
            BackendError: The process died, with its last words; the next call resumes.
            TunefleetError: As `edge.training.trainer.train`, and `DataError` for the data.
        """
        async with self._turn:
            self._is_training, self._wants_stop = True, False
            try:
                while True:
                    try:
                        return await self._ask(task, Result, on_progress)
                    except _Killed as error:
                        task = _halved(task, error)
            finally:
                self._is_training = self._wants_stop = False

    async def stop(self) -> None:
        """Ends training: `train` returns a result that is not complete, its checkpoint written.

        Without effect when nothing is trained.
        """
        if self._is_training:
            self._wants_stop = True
            if self._child:
                self._child.send(Stop())

    async def score(
        self, adapter: Path | str | None, data: DataSource, *, seq_tokens: int = 512, batch_tokens: int = 2048
    ) -> Evaluation:
        """Loss, accuracy and exact match of the base with `adapter` (a canonical file), or without one."""
        path = str(adapter) if adapter else None
        async with self._turn:
            request = Scoring(adapter=path, data=data, seq_tokens=seq_tokens, batch_tokens=batch_tokens)
            return await self._ask(request, Evaluation)

    async def generate(
        self,
        prompts: Sequence[str],
        *,
        adapter: Path | str | None = None,
        max_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """Completions, one for each prompt; temperature 0 is greedy."""
        request = Generation(
            prompts=tuple(prompts),
            adapter=str(adapter) if adapter else None,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
        async with self._turn:
            return list((await self._ask(request, Texts)).texts)

    async def _ask(
        self, request: Request, kind: type[R], on_progress: Callable[[Progress], None] = lambda _: None
    ) -> R:
        child = await self._running()
        try:
            child.send(request)
            if self._wants_stop:
                child.send(Stop())
            return await child.receive(kind, on_progress)
        except asyncio.CancelledError:
            child.terminate()  # it would answer the next call with this one's reply
            raise
        finally:
            if child.is_over:
                self._child = None
                await child.close()

    async def _running(self) -> "_Child":
        if self._child and self._child.process.returncode is not None:  # it died between two calls
            await self._child.close()
            self._child = None
        if self._child is None:
            self._child = await _Child.start(self._base, self._backend, self._precision)
        return self._child


class _Killed(OutOfMemory):
    """The process was killed, for all that is known for want of memory."""


class _Child:
    """One process, and the lines to and from it."""

    loaded: Loaded

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.pid = process.pid
        self.is_over = False
        self.num_kills = _count_kills()
        self.last_words: deque[str] = deque(maxlen=LAST_WORDS)
        self.listener = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, base: str, backend: BackendName, precision: Precision) -> Self:
        """Starts a process and waits until it has loaded the base model."""
        chosen = resolve_backend(backend, Path(base))
        child = cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "edge.training.child", base, chosen, precision),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=LINE_BYTES,
                # Idle threads must not spin beside another pool's; to be set before a library is loaded.
                env={"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false", **os.environ},
            )
        )
        try:
            child.loaded = await child.receive(Loaded)
        except BaseException as error:
            child.terminate()
            await child.close()
            if isinstance(error, _Killed):  # a smaller step would not help
                raise OutOfMemory(f"{base}: {error}, while the model was loaded") from error
            raise
        return child

    def send(self, request: Request) -> None:
        """Sends a line; to a process that is over, in vain."""
        assert self.process.stdin
        self.process.stdin.write(msgspec.json.encode(request) + b"\n")

    async def receive(self, kind: type[R], on_progress: Callable[[Progress], None] = lambda _: None) -> R:
        """The next reply that is no progress.

        Raises:
            TunefleetError: As the process reports it.
            BackendError: It died.
        """
        assert self.process.stdout
        while (line := await self.process.stdout.readline()).endswith(b"\n"):
            reply = msgspec.json.decode(line, type=Reply)
            if isinstance(reply, Progress):
                on_progress(reply)
            elif isinstance(reply, kind):
                return reply
            elif isinstance(reply, Failed):
                raise _error(reply)
        raise await self._death()

    def terminate(self) -> None:
        """Asks the process to write a checkpoint and end."""
        self.is_over = True
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    async def close(self) -> None:
        """Ends the process, by force where it does not end by itself."""
        assert self.process.stdin
        self.process.stdin.close()
        try:
            async with asyncio.timeout(CLOSING_S):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        await self.listener

    async def _listen(self) -> None:
        assert self.process.stderr
        async for line in self.process.stderr:
            self.last_words.append(line.decode(errors="replace").strip())

    async def _death(self) -> BackendError:
        self.is_over = True
        code = await self.process.wait()
        await self.listener
        words = " | ".join(self.last_words) or "it left no message"
        if code not in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return BackendError(f"the training process ended with status {code}; its last words: {words}")
        kills = _count_kills()
        if kills is not None and kills == self.num_kills:
            return BackendError("the training process was killed (SIGKILL), and not for want of memory")
        return _Killed("the training process was killed (SIGKILL), most likely for want of memory")


def _count_kills() -> int | None:
    # How often Linux has killed for want of memory: it tells such a death from another SIGKILL.
    try:
        counts = dict(line.split() for line in VMSTAT.read_text().splitlines())
        return int(counts["oom_kill"])
    except (OSError, KeyError, ValueError):
        return None


def _halved(task: Task, error: OutOfMemory) -> Task:
    half = (task.plan.micro_batch_tokens or task.plan.batch_tokens) // 2
    if half < WIDTH_STEP:
        raise OutOfMemory(f"{error}; lower seq_tokens, {task.plan.seq_tokens}") from error
    return structs.replace(task, plan=structs.replace(task.plan, micro_batch_tokens=half))


def _error(reply: Failed) -> TunefleetError:
    kinds = {**vars(converters.errors), **vars(edge.errors)}
    kind: Callable[[str], TunefleetError] = kinds.get(reply.error, BackendError)
    return BackendError(reply.message) if reply.error in _NOT_PLAIN else kind(reply.message)
