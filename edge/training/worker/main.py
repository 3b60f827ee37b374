"""The worker process: one base model, kept loaded, and one request after the other.

Requests come as JSON lines on stdin, replies go as JSON lines to what was stdout when the process began;
whatever a library prints goes to stderr. A stop request, SIGTERM and the end of stdin (the parent died) end
the task under way with a checkpoint; the latter two end the process as well.

Run as: python -m edge.training.worker.main BASE BACKEND PRECISION
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import BinaryIO, Literal, cast

import msgspec
from msgspec import structs

from converters.adapter import LoraAdapter
from converters.errors import TunefleetError
from converters.formats.canonical import load_adapter
from edge.backends import load_model
from edge.backends.contract import ModelCard, Precision, TrainableModel
from edge.errors import EdgeError
from edge.storage.disk import room_for
from edge.training.asking import encode_questions, end_tokens
from edge.training.data.folders import stamp
from edge.training.dataset import Dataset, DataSource, load_dataset
from edge.training.plan import Plan
from edge.training.task import (
    Completion,
    Completions,
    Evaluation,
    Failed,
    Generation,
    Loaded,
    Piece,
    Progress,
    Reply,
    Request,
    Result,
    Scoring,
    Stop,
    Task,
    Validated,
    Validation,
)
from edge.training.text_stream import TextStream
from edge.training.trainer import score_dataset, train
from edge.training.validation import Validator
from edge.training.worker.held_model import HeldModel

PROGRESS_EVERY_S = 0.1  # a toy's step takes less than a millisecond


class Inbox:
    """Requests as they come; a stop is known at once, also in the middle of a task."""

    def __init__(self) -> None:
        self.stop = Event()
        self._requests: SimpleQueue[Request | None] = SimpleQueue()  # its put is safe in a signal handler
        self._is_closed = False

    def __iter__(self) -> Iterator[Request]:
        """Requests until the inbox is closed."""
        while (request := self._requests.get()) is not None:
            yield request

    def read(self, lines: BinaryIO) -> None:
        """Takes requests until `lines` ends, and closes the inbox then."""
        with contextlib.closing(self):
            self._read(lines)

    def _read(self, lines: BinaryIO) -> None:
        for line in lines:
            request = msgspec.json.decode(line, type=Request)
            if isinstance(request, Stop):
                self.stop.set()
                continue
            if isinstance(request, Task):
                self.stop.clear()
            if self._is_closed:
                self.stop.set()
            self._requests.put(request)

    def close(self, *_: object) -> None:
        """Ends the task under way, and the process after it."""
        self._is_closed = True
        self.stop.set()
        self._requests.put(None)


class Session:
    """A loaded model and the data that it was last asked about."""

    def __init__(self, held: HeldModel, stop: Event, send: Callable[[Reply], None]) -> None:
        self.held, self.stop, self.send = held, stop, send
        self.datasets: dict[bytes, Dataset] = {}

    @property
    def model(self) -> TrainableModel:
        """As it is in memory now."""
        return self.held.model

    def answer(self, request: Request) -> Reply:
        """Does what is asked.

        Raises:
            TunefleetError: It cannot be done, and why.
        """
        match request:
            case Task():
                return self._train(request)
            case Scoring():
                return self._score(request)
            case Generation():
                return self._generate(request)
        raise EdgeError(f"worker: {type(request).__name__} is not expected here")

    def _train(self, task: Task) -> Result:
        plan = fit_plan(task.plan, self.held.card)
        folder = Path(task.folder)
        with room_for("the task", folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.held.train_on(folder)
        data = self._dataset(task.data, plan.seq_tokens)
        validator = None
        if task.valid:
            held_out = load_dataset(task.valid, self.model.tokenizer, seq_tokens=plan.seq_tokens)
            validator = Validator(held_out, plan, every=task.valid_every, tell=self._tell_validation)
        return train(
            self.model,
            data,
            plan,
            load_adapter(Path(task.adapter)),
            folder,
            validator=validator,
            on_progress=Throttle(self.send),
            should_stop=self.stop.is_set,
            slowdown=task.slowdown,
            sleep=self.stop.wait,
        )

    def _tell_validation(self, validation: Validation) -> None:
        self.send(Validated(validation=validation))

    def _score(self, request: Scoring) -> Evaluation:
        seq_tokens = min(request.seq_tokens, self.held.card.max_tokens)
        self.held.compute_in(request.precision)
        self._set_adapter(request.adapter)
        data = self._dataset(request.data, seq_tokens)
        return score_dataset(self.model, data, seq_tokens=seq_tokens, batch_tokens=request.batch_tokens)

    def _generate(self, request: Generation) -> Completions:
        self.held.compute_in("auto")
        tokenizer, sampling = self.model.tokenizer, request.sampling
        prompts = encode_questions(request, tokenizer, self.model.card.max_tokens)
        self._set_adapter(request.adapter)
        streams = [TextStream(tokenizer) for _ in prompts]

        def tell(index: int, text: str) -> None:
            if text and request.is_streamed:
                self.send(Piece(prompt=index, text=text))

        found = self.model.generate(
            prompts,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            ends=end_tokens(tokenizer),
            on_token=lambda index, token: tell(index, streams[index].push(token)),
        )
        for index, stream in enumerate(streams):
            tell(index, stream.end())
        return Completions(
            completions=tuple(
                Completion(
                    text=stream.text,
                    num_prompt_tokens=len(prompt),
                    num_tokens=len(tokens),
                    ended_by=self._ended_by(len(prompt), len(tokens), sampling.max_tokens),
                )
                for prompt, tokens, stream in zip(prompts, found, streams, strict=True)
            )
        )

    def _ended_by(
        self, num_prompt_tokens: int, num_tokens: int, max_tokens: int
    ) -> Literal["end", "max_tokens", "context"]:
        if num_tokens >= max_tokens:
            return "max_tokens"
        is_full = num_prompt_tokens + num_tokens >= self.model.card.max_tokens
        return "context" if is_full else "end"

    def _set_adapter(self, path: str | None) -> None:
        self.model.set_adapter(load_adapter(Path(path)) if path else LoraAdapter({}))

    def _dataset(self, source: DataSource, seq_tokens: int) -> Dataset:
        # Kept over tasks: a fleet's device trains on the same file again and again.
        key = msgspec.json.encode([source, seq_tokens, stamp(Path(source.path))])
        if key not in self.datasets:
            self.datasets = {key: load_dataset(source, self.model.tokenizer, seq_tokens=seq_tokens)}
        return self.datasets[key]


class Throttle:
    """Passes on the first and the last progress of a task, and some in between."""

    def __init__(self, send: Callable[[Reply], None]) -> None:
        self.send = send
        self.sent_at = -PROGRESS_EVERY_S

    def __call__(self, progress: Progress) -> None:
        """Sends `progress` where the last one is old enough."""
        now = time.monotonic()
        if now - self.sent_at >= PROGRESS_EVERY_S or progress.step == progress.steps:
            self.send(progress)
            self.sent_at = now


def fit_plan(plan: Plan, card: ModelCard) -> Plan:
    """`plan` with rows no longer than the base model's context."""
    return structs.replace(plan, seq_tokens=min(plan.seq_tokens, card.max_tokens))


def serve(
    inbox: Inbox,
    load: Callable[[Precision], TrainableModel],
    precision: Precision,
    send: Callable[[Reply], None],
) -> None:
    """Loads the model and answers requests until the inbox is closed."""
    try:
        session = Session(HeldModel(load, precision), inbox.stop, send)
    except TunefleetError as error:
        return send(_failed(error))
    card = session.held.card
    send(
        Loaded(
            backend=card.backend,
            num_parameters=card.num_parameters,
            max_tokens=card.max_tokens,
            precision=card.precision,
            backend_why="",  # the parent chose it
            precision_why=card.why if precision == "auto" else "as asked",
            has_chat_template=session.model.tokenizer.has_chat_template,
        )
    )
    for request in inbox:
        try:
            send(session.answer(request))
        except TunefleetError as error:
            send(_failed(error))
    return None


def main(base: str, backend: str, precision: Precision) -> None:
    """Serves the parent process at the other end of stdin and stdout."""
    # Files of our own: at exit Python would wait for the reader's lock on sys.stdin.
    requests = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    inbox = Inbox()
    signal.signal(signal.SIGTERM, inbox.close)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which decides
    Thread(target=inbox.read, args=(requests,), daemon=True).start()

    def send(reply: Reply) -> None:
        try:
            replies.write(msgspec.json.encode(reply) + b"\n")
        except BrokenPipeError:
            inbox.close()

    serve(inbox, lambda chosen: load_model(backend, Path(base), precision=chosen), precision, send)


def _failed(error: TunefleetError) -> Failed:
    return Failed(error=type(error).__name__, message=str(error), whole=error.whole)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], cast(Precision, sys.argv[3]))
