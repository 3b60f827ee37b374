"""A base model in this process that many devices take turns at: fleets for research and tests.

`supervisor.py` gives each device a process of its own, which outlives a want of memory and can be
killed. Here there is one model and one thread that computes with it, so that twenty devices cost the memory
of one and begin at once; a want of memory ends the whole process.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

from edge.backends import load_model
from edge.backends.contract import TrainableModel
from edge.choices import BackendName, Precision
from edge.training.requests import Evaluation, Progress, Reply, Request, Result, Scoring, Training
from edge.training.worker.held_model import HeldModel
from edge.training.worker.model_server import ModelServer


class SharedModel:
    """A base model, loaded when it is first asked for.

    Args:
        base: Folder or GGUF file.
        backend: `auto` chooses by machine and base.
        precision: Of the forward and backward pass.
    """

    def __init__(
        self, base: Path | str, backend: BackendName = "auto", precision: Precision = "auto"
    ) -> None:
        self._base, self._backend, self._precision = Path(base), backend, precision
        self._model: HeldModel | None = None
        self._turns = ThreadPoolExecutor(1, "tunefleet-model")

    async def ask(self, worker: "SharedWorker", request: Request) -> Reply:
        """Waits for its turn, and for the answer; training that is cancelled ends after its step."""
        asked = asyncio.get_running_loop().run_in_executor(self._turns, self._answer, worker, request)
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            worker.stop_event.set()
            await asyncio.wait([asked])
            raise

    def close(self) -> None:
        """Waits for the thread, which has been told to stop."""
        self._turns.shutdown()
        self._model = None

    def _answer(self, worker: "SharedWorker", request: Request) -> Reply:
        if self._model is None:
            self._model = HeldModel(self._load, self._precision)
        return worker.server(self._model).answer(request)

    def _load(self, precision: Precision) -> TrainableModel:
        return load_model(self._backend, self._base, precision=precision)


class SharedWorker:
    """One device's turns at a shared model; as `supervisor.Worker` to those who use it."""

    def __init__(self, shared: SharedModel) -> None:
        self.stop_event = Event()
        self._shared = shared
        self._server: ModelServer | None = None
        self._tell: Callable[[Reply], None] = lambda _: None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_event.set()

    def server(self, model: HeldModel) -> ModelServer:
        """Returns the device's own view of the model: its data, once tokenized, and its stop."""
        if self._server is None:
            self._server = ModelServer(model, self.stop_event, lambda reply: self._tell(reply))
        return self._server

    async def train(
        self, order: Training, on_progress: Callable[[Progress], None] = lambda _: None
    ) -> Result:
        """Trains, from the checkpoint in the order's folder where there is one."""
        loop = asyncio.get_running_loop()
        self.stop_event.clear()
        self._tell = lambda reply: _pass_on(loop, on_progress, reply)
        result = await self._shared.ask(self, order)
        assert isinstance(result, Result)
        return result

    async def stop(self) -> None:
        """Ends training: `train` returns a result that is not complete, its checkpoint written."""
        self.stop_event.set()

    async def score(self, request: Scoring) -> Evaluation:
        """Tells how well data is predicted with an adapter, or without one."""
        evaluation = await self._shared.ask(self, request)
        assert isinstance(evaluation, Evaluation)
        return evaluation


def _pass_on(loop: asyncio.AbstractEventLoop, on_progress: Callable[[Progress], None], reply: Reply) -> None:
    if isinstance(reply, Progress):
        loop.call_soon_threadsafe(on_progress, reply)
