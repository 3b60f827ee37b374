"""What a worker does with a request: trains, scores or generates with one loaded model."""

import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Literal

import msgspec
from msgspec import structs

from converters.adapter import LoraAdapter
from converters.formats.canonical import load_adapter
from edge.backends.contract import ModelCard, TrainableModel
from edge.errors import EdgeError
from edge.storage.disk import room_for
from edge.training.asking import encode_questions, end_tokens
from edge.training.data.dataset import Dataset, load_dataset
from edge.training.data.readers.folders import stamp
from edge.training.data.source import DataSource
from edge.training.plan import Plan
from edge.training.requests import (
    Completion,
    Completions,
    Evaluation,
    Generation,
    Piece,
    Progress,
    Reply,
    Request,
    Result,
    Scoring,
    Training,
    Validated,
    Validation,
)
from edge.training.scoring import score_dataset
from edge.training.text_stream import TextStream
from edge.training.trainer import train
from edge.training.validation import Validator
from edge.training.worker.held_model import HeldModel

PROGRESS_EVERY_S = 0.1  # a toy's step takes less than a millisecond


class ModelServer:
    """Answers requests with a loaded model; keeps the data that it was last asked about."""

    def __init__(self, held: HeldModel, stop: Event, send: Callable[[Reply], None]) -> None:
        self.held, self.stop, self.send = held, stop, send
        self.datasets: dict[bytes, Dataset] = {}

    @property
    def model(self) -> TrainableModel:
        """Returns the model as it is in memory now."""
        return self.held.model

    def answer(self, request: Request) -> Reply:
        """Does what is asked.

        Raises:
            TunefleetError: It cannot be done, and why.
        """
        match request:
            case Training():
                return self._train(request)
            case Scoring():
                return self._score(request)
            case Generation():
                return self._generate(request)
        raise EdgeError(f"worker: {type(request).__name__} is not expected here")

    def _train(self, order: Training) -> Result:
        plan = fit_plan(order.plan, self.held.card)
        folder = Path(order.folder)
        with room_for("the task", folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.held.train_on(folder)
        data = self._dataset(order.data, plan.seq_tokens)
        validator = None
        if order.valid:
            held_out = load_dataset(order.valid, self.model.tokenizer, seq_tokens=plan.seq_tokens)
            validator = Validator(held_out, plan, every=order.valid_every, tell=self._tell_validation)
        return train(
            self.model,
            data,
            plan,
            load_adapter(Path(order.adapter)),
            folder,
            validator=validator,
            on_progress=Throttle(self.send),
            should_stop=self.stop.is_set,
            slowdown=order.slowdown,
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
            sampling,
            end_tokens(tokenizer),
            lambda index, token: tell(index, streams[index].push(token)),
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
        # Kept from one order to the next: a fleet's device trains on the same file again and again.
        key = msgspec.json.encode([source, seq_tokens, stamp(Path(source.path))])
        if key not in self.datasets:
            self.datasets = {key: load_dataset(source, self.model.tokenizer, seq_tokens=seq_tokens)}
        return self.datasets[key]


class Throttle:
    """Passes on the first and the last progress of a training, and some in between."""

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
    """Returns `plan` with rows no longer than the base model's context."""
    return structs.replace(plan, seq_tokens=min(plan.seq_tokens, card.max_tokens))
