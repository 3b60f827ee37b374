"""One process's training ground: a base model loaded once, a lesson's rows tokenized once.

Training is `edge.training.trainer.train` on the torch backend in this process, in float32 and with one
thread; task folders lie in memory. The calibration set is answered for here as the coordinator's own does
(`coordinator.strategies.contract.Calibrator`), on the same loaded model.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from benchmarks.strategies.lessons import Lesson, Row
from converters.adapter import LoraAdapter, initial_adapter
from converters.arithmetic import add, multiply, subtract
from converters.bases.read import read_base
from converters.bases.targets import match_targets
from converters.formats.canonical import load_adapter, save_adapter
from coordinator.calibration import Calibration
from edge.backends import load_model
from edge.backends.contract import TrainableModel
from edge.training.data.dataset import Dataset, load_dataset
from edge.training.data.source import DataSource
from edge.training.packing import iterate_batches
from edge.training.plan import Plan
from edge.training.requests import Evaluation, Result
from edge.training.scoring import score_dataset
from edge.training.trainer import train

Poison = Literal["sign-flipped", "scaled", "label-flipped"]
POISON_SCALE = 10.0
SCORE_TOKENS = 2048  # of one forward pass
MEMORY = Path("/dev/shm")


class Quality(NamedTuple):
    """How good an adapter is on some rows."""

    loss: float  # nats a label
    accuracy: float  # the lesson's own: of whole answers, or of tokens


@cache
def load_base(base: Path) -> TrainableModel:
    """Loads a base model, once in a process.

    Raises:
        BaseModelError: It cannot be loaded.
        MissingExtra: The torch extra is not installed.
    """
    import torch  # a heavy library, when it is asked for

    torch.set_num_threads(1)  # there is a simulation for each core
    return load_model("torch", base)


class Workbench:
    """A lesson on its loaded base model.

    Args:
        lesson: What is learnt.
        model: Its base.
        folder: Empty, for adapters and task folders; removed by whoever made it.
        poisoned: Devices whose completions are dealt out wrongly among their prompts.
    """

    def __init__(
        self, lesson: Lesson, model: TrainableModel, folder: Path, poisoned: Sequence[int] = ()
    ) -> None:
        self.lesson, self.model, self.folder = lesson, model, folder
        base = read_base(lesson.base)
        self.fingerprint = base.fingerprint
        self.modules = match_targets(base.modules, lesson.targets)
        self.train_data = [
            self._load(shuffled(one.train) if index in poisoned else one.train)
            for index, one in enumerate(lesson.devices)
        ]
        self.own_tests = [self._load(one.test) for one in lesson.devices]
        self.test = self._load(lesson.test)
        self.calibration_path = self._write(lesson.calibration, "calibration.jsonl")
        self.calibration = Calibration(
            lesson.base, self.calibration_path, seq_tokens=lesson.recipe.seq_tokens, batch_tokens=SCORE_TOKENS
        )

    def first_adapter(self, seed: int) -> LoraAdapter:
        """Returns version 0."""
        return initial_adapter(self.modules, rank=self.lesson.rank, scale=self.lesson.scale, seed=seed)

    def train(self, device: int, plan: Plan, adapter: LoraAdapter, folder: Path) -> Result:
        """Does a device's task, in a folder that exists and is empty."""
        return train(self.model, self.train_data[device], plan, adapter, folder)

    @cached_property
    def test_parts(self) -> list[Dataset]:
        """The test rows dealt out to the devices, for when each has an adapter of its own."""
        count = len(self.lesson.devices)
        return [self._load(self.lesson.test[index::count]) for index in range(count)]

    def num_tokens(self, device: int, plan: Plan) -> int:
        """Counts the useful tokens that the plan will train on, before it is followed."""
        batches = iterate_batches(
            self.train_data[device].examples,
            seq_tokens=plan.seq_tokens,
            batch_tokens=plan.batch_tokens,
            seed=plan.seed,
        )
        return sum(batch.num_tokens for batch in islice(batches, plan.steps))

    def score(self, adapter: LoraAdapter, dataset: Dataset) -> Quality:
        """Scores an adapter on some rows."""
        self.model.set_adapter(adapter)
        return self.score_present(dataset)

    def score_present(self, dataset: Dataset) -> Quality:
        """Scores the adapter that the model has on some rows."""
        found = score_dataset(
            self.model, dataset, seq_tokens=self.lesson.recipe.seq_tokens, batch_tokens=SCORE_TOKENS
        )
        return Quality(found.loss, self._accuracy(found))

    def _accuracy(self, found: Evaluation) -> float:
        return found.exact_match if self.lesson.is_exact else found.accuracy

    def _load(self, rows: Sequence[Row]) -> Dataset:
        source = DataSource(path=str(self._write(rows, "rows.jsonl")))
        return load_dataset(source, self.model.tokenizer, seq_tokens=self.lesson.recipe.seq_tokens)

    def _write(self, rows: Sequence[Row], name: str) -> Path:
        path = self.folder / name
        path.write_bytes(b"".join(msgspec.json.encode(row._asdict()) + b"\n" for row in rows))
        return path


@contextmanager
def memory_folder() -> Iterator[Path]:
    """Makes a folder in memory where the system has one: what is written there costs no disk."""
    folder = Path(tempfile.mkdtemp(prefix="fleet-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def shuffled(rows: Sequence[Row]) -> list[Row]:
    """Moves every completion on by half the rows: right words, at the wrong prompts."""
    half = len(rows) // 2
    return [row._replace(completion=rows[index - half].completion) for index, row in enumerate(rows)]


def poison(kind: Poison, dispatched: Path, result: Result) -> Result:
    """Does what a hostile device does to its trained adapter before it is sent."""
    if kind == "label-flipped":
        return result  # its data did it
    base, trained = load_adapter(dispatched), load_adapter(Path(result.adapter))
    moved = multiply(subtract(trained, base), -1.0 if kind == "sign-flipped" else POISON_SCALE)
    save_adapter(add(base, moved), Path(result.adapter))
    return result
