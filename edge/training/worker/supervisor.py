"""The supervisor of the worker process: starts it, talks to it, and outlives its death.

A process that is killed for want of memory, or dies in a library, ends one call and not the client: the next
call starts a new process, and training goes on from the folder's last checkpoint.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from msgspec import structs

from edge.backends.batch_layout import WIDTH_STEP
from edge.choices import BackendName, Precision
from edge.errors import OutOfMemory
from edge.training.requests import (
    Completion,
    Completions,
    Evaluation,
    Generation,
    Loaded,
    Part,
    Piece,
    Progress,
    Request,
    Result,
    Scoring,
    Stop,
    Training,
    Validated,
    Validation,
)
from edge.training.worker.process import VMSTAT, Killed, WorkerProcess

R = TypeVar("R", Loaded, Result, Evaluation, Completions)


class Trainer(Protocol):
    """What a client trains with: a `Worker`, or its turns at a model that devices share."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def train(self, order: Training, on_progress: Callable[[Progress], None] = ...) -> Result:
        """Trains, from the checkpoint in the order's folder where there is one."""
        ...

    async def stop(self) -> None:
        """Ends training: `train` returns a result that is not complete, its checkpoint written."""
        ...


class Worker:
    """A base model loaded in a process of its own, started when it is first asked.

    Calls wait for one another. Used as `async with Worker(base) as worker:`.

    Args:
        base: Folder or GGUF file of the base model.
        backend: `auto` chooses by machine and base.
        precision: Of the forward and backward pass.
        on_loaded: Called when a process has loaded the model.
        vmstat: Where Linux counts the processes that it killed for want of memory.
    """

    def __init__(
        self,
        base: Path | str,
        backend: BackendName = "auto",
        precision: Precision = "auto",
        on_loaded: Callable[[Loaded], None] = lambda _: None,
        vmstat: Path = VMSTAT,
    ) -> None:
        self._on_loaded, self._vmstat = on_loaded, vmstat
        self._base, self._backend, self._precision = str(base), backend, precision
        self._process: WorkerProcess | None = None
        self._turn = asyncio.Lock()
        self._is_training = self._wants_stop = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process:
            await process.close()

    @property
    def pid(self) -> int | None:
        """Tells the id of the process, where one runs."""
        return self._process.pid if self._process else None

    async def load(self) -> Loaded:
        """Starts the process and loads the base model, where that is not done yet.

        Raises:
            MissingExtra: The backend's library is not installed.
            BaseModelError: The base model cannot be loaded.
        """
        async with self._turn:
            return (await self._running()).loaded

    async def train(
        self,
        order: Training,
        on_progress: Callable[[Progress], None] = lambda _: None,
        on_validation: Callable[[Validation], None] = lambda _: None,
    ) -> Result:
        """Trains, from the checkpoint in the order's folder where there is one.

        A process that was killed for want of memory is started again with half the micro-batch.

        Args:
            order: What to train.
            on_progress: Called as training goes on.
            on_validation: Called with each score of its held-out data.

        Raises:
            OutOfMemory: Not even one row at a time fits.
            BackendError: The process died, with its last words; the next call resumes.
            TunefleetError: As `edge.training.trainer.train`, and `DataError` for the data.
        """

        def tell(part: Part) -> None:
            if isinstance(part, Progress):
                on_progress(part)
            elif isinstance(part, Validated):
                on_validation(part.validation)

        async with self._turn:
            self._is_training, self._wants_stop = True, False
            try:
                while True:
                    try:
                        return await self._ask(order, Result, tell)
                    except Killed as error:
                        order = _halved(order, error)
            finally:
                self._is_training = self._wants_stop = False

    async def stop(self) -> None:
        """Ends training: `train` returns a result that is not complete, its checkpoint written.

        Without effect when nothing is trained.
        """
        if self._is_training:
            self._wants_stop = True
            if self._process:
                self._process.send(Stop())

    async def score(self, request: Scoring) -> Evaluation:
        """Tells how well data is predicted with an adapter, or without one.

        Raises:
            DataError: The data cannot be used.
            OutOfMemory: The model does not fit in that precision.
        """
        async with self._turn:
            try:
                return await self._ask(request, Evaluation)
            except OutOfMemory as error:
                if request.precision == "float32":
                    raise OutOfMemory(
                        f"{error}; scores are taken in float32 unless asked: --precision bfloat16 takes half "
                        "the memory"
                    ) from error
                raise

    async def generate(
        self, request: Generation, on_text: Callable[[int, str], object] | None = None
    ) -> tuple[Completion, ...]:
        """Answers prompts.

        Args:
            request: What is asked, and how.
            on_text: Called with a prompt's index and the next piece of its answer, as it comes.

        Raises:
            DataError: A prompt is empty or longer than the model's context, or the base has no chat template.
        """
        request = structs.replace(request, is_streamed=on_text is not None)

        def tell(part: Part) -> None:
            if on_text and isinstance(part, Piece):
                on_text(part.prompt, part.text)

        async with self._turn:
            return (await self._ask(request, Completions, tell)).completions

    async def _ask(
        self, request: Request, kind: type[R], on_part: Callable[[Part], None] = lambda _: None
    ) -> R:
        process = await self._running()
        try:
            process.send(request)
            if self._wants_stop:
                process.send(Stop())
            return await process.receive(kind, on_part)
        except asyncio.CancelledError:  # it would answer the next call with this one's reply
            if isinstance(request, Training):
                process.terminate()
            else:
                process.kill()  # it has nothing to save, and asks nobody before it has answered
            raise
        finally:
            if process.is_over:
                self._process = None
                await process.close()

    async def _running(self) -> WorkerProcess:
        if self._process and self._process.process.returncode is not None:  # it died between two calls
            await self._process.close()
            self._process = None
        if self._process is None:
            self._process = await WorkerProcess.start(
                self._base, self._backend, self._precision, self._vmstat
            )
            self._on_loaded(self._process.loaded)
        return self._process


def _halved(order: Training, error: OutOfMemory) -> Training:
    """Returns the order with half the micro-batch, where it is not the smallest."""
    half = (order.plan.micro_batch_tokens or order.plan.batch_tokens) // 2
    if half < WIDTH_STEP:
        raise OutOfMemory(f"{error}; lower seq_tokens, {order.plan.seq_tokens}") from error
    return structs.replace(order, plan=structs.replace(order.plan, micro_batch_tokens=half))
