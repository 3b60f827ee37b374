"""How good an adapter is on held-out data: the one place where the coordinator loads the base model.

Merging needs no base model and no heavy library; scoring, the guard, the cosine filter and the alignment do,
through the training wing's backends. The model is loaded when it is first asked for, and stays loaded.
One model holds one adapter at a time, so callers in different threads wait for each other.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from converters.adapter import LoraAdapter
from converters.arithmetic import add
from coordinator.events.records import ModelLoaded
from coordinator.scoring import Quality
from edge.backends import load_model
from edge.backends.contract import Batch, Precision, TrainableModel
from edge.errors import DataError
from edge.training.data.check import check_source, held_out
from edge.training.data.dataset import Dataset, load_dataset
from edge.training.data.readers.folders import locate
from edge.training.data.source import DataSource
from edge.training.packing import Example, iterate_once
from edge.training.scoring import score_dataset

MAX_UNKNOWN = 0.5  # share of tokens that stand for no text


class _Loaded(NamedTuple):
    model: TrainableModel
    dataset: Dataset
    batches: list[Batch]  # of every example
    probe: list[Batch]  # of those that features are taken of


class Calibration:
    """Held-out data and the base model that reads it; a `coordinator.strategies.contract.Calibrator`.

    Args:
        base: The base model's folder.
        data: A file or folder of any form that training reads; of a folder the part that is held out.
        seq_tokens: Longest sequence.
        batch_tokens: Tokens of one forward pass.
        precision: Of the forward pass; in float32 scores of different coordinators can be compared.
        probe_tokens: Features are taken of every n-th example, so that those hold about so many tokens: the
            alignment passes over them some five times for each version that updates come from. The loss and
            its gradient are always of all examples.
        load: Loads the model.
    """

    def __init__(
        self,
        base: Path,
        data: Path,
        *,
        seq_tokens: int,
        batch_tokens: int,
        precision: Precision = "float32",
        probe_tokens: int = 256,
        load: Callable[..., TrainableModel] = load_model,
    ) -> None:
        self._load_model = load
        self._base = base
        self._precision = precision
        self._data = data
        self._seq_tokens = seq_tokens
        self._batch_tokens = batch_tokens
        self._probe_tokens = probe_tokens
        self._lock = threading.RLock()
        # The guard asks for a version once more when the next one is made.
        self._scored: deque[tuple[LoraAdapter, Quality]] = deque(maxlen=2)
        self._loaded: _Loaded | None = None

    def load(self) -> tuple[TrainableModel, Dataset]:
        """Returns the model and the tokenized data, read at the first call.

        Raises:
            MissingExtra: No backend is installed.
            BaseModelError: The base model cannot be loaded.
            DataError: The data cannot be used, or the base model's tokenizer does not read it.
        """
        return self._load()[:2]

    def loaded(self) -> ModelLoaded:
        """Returns what reads the data, and in which precision, to be told."""
        card, path = self.load()[0].card, str(locate(self._data, is_held_out=True))
        return ModelLoaded(path, card.backend, card.precision, card.why)

    def score(self, adapter: LoraAdapter) -> Quality:
        """Scores the base with `adapter` on all of the data: loss and exact matches.

        Raises:
            UnsupportedAdapter: The adapter does not fit the base.
        """
        with self._lock:
            for known, quality in self._scored:
                if known == adapter:
                    return quality
            model, dataset = self._load()[:2]
            model.set_adapter(adapter)
            seq_tokens = min(self._seq_tokens, model.card.max_tokens)
            found = score_dataset(model, dataset, seq_tokens=seq_tokens, batch_tokens=self._batch_tokens)
            self._scored.append((adapter, Quality(found.loss, found.exact_match)))
            return self._scored[-1][1]

    def loss(self, adapter: LoraAdapter) -> float:
        """See `Calibrator.loss`."""
        return self.score(adapter).loss

    def gradient(self, adapter: LoraAdapter) -> LoraAdapter:
        """See `Calibrator.gradient`."""
        with self._lock:
            loaded = self._load()
            loaded.model.set_adapter(adapter)
            return loaded.model.gradient(loaded.batches)[1]

    def features(self, adapter: LoraAdapter) -> NDArray[np.float32]:
        """See `Calibrator.features`: of the probed examples, always in the same order."""
        with self._lock:
            loaded = self._load()
            loaded.model.set_adapter(adapter)
            return np.concatenate([loaded.model.features(batch) for batch in loaded.probe])

    def pull_back(self, adapter: LoraAdapter, cotangent: NDArray[np.float32]) -> LoraAdapter:
        """See `Calibrator.pull_back`."""
        with self._lock:
            loaded = self._load()
            loaded.model.set_adapter(adapter)
            ends = np.cumsum([batch.num_examples for batch in loaded.probe])[:-1]
            parts = zip(loaded.probe, np.split(cotangent, ends), strict=True)
            return reduce(add, (loaded.model.pull_back(batch, part) for batch, part in parts))

    def _load(self) -> _Loaded:
        with self._lock:
            if self._loaded is None:
                source = look_through(self._data)  # before the model is loaded
                model = self._load_model("auto", self._base, precision=self._precision)
                seq_tokens = min(self._seq_tokens, model.card.max_tokens)
                dataset = load_dataset(source, model.tokenizer, seq_tokens=seq_tokens)
                _check_tokens(source.path, dataset, model)
                every, probe = (
                    list(iterate_once(examples, seq_tokens=seq_tokens, batch_tokens=self._batch_tokens))
                    for examples in (dataset.examples, _every_nth(dataset.examples, self._probe_tokens))
                )
                self._loaded = _Loaded(model, dataset, every, probe)
            return self._loaded


def look_through(data: Path) -> DataSource:
    """Returns what versions are scored on or judged by, in a file or folder, once all rows are looked at.

    Raises:
        DataError: It cannot be used, and why.
        MissingExtra: A library is needed to read it.
    """
    source = held_out(DataSource(path=str(data)))
    check_source(source)
    return source


def _every_nth(examples: Sequence[Example], num_tokens: int) -> Sequence[Example]:
    """Takes examples from all over the file, of about `num_tokens` tokens together."""
    total = sum(len(example.tokens) - 1 for example in examples)
    return examples[:: -(-total // num_tokens)]


def _check_tokens(path: str, dataset: Dataset, model: TrainableModel) -> None:
    """Refuses text that the tokenizer makes nothing of, and tokens that the model has no embedding for.

    The file holds text, so that no tokenizer is wrong in itself; these are the two ways in which it shows.
    """
    tokens = np.concatenate([example.tokens for example in dataset.examples])
    highest, num_known = int(tokens.max()), model.card.vocab_size
    if highest >= num_known:
        raise DataError(
            f"{path}: the base's tokenizer reads token {highest} in it, and the base model has {num_known} "
            f"tokens: the tokenizer is another model's; put the base model's own into its folder"
        )
    ends = [end for end in (model.tokenizer.bos_id, model.tokenizer.eos_id) if end is not None]
    text = tokens[~np.isin(tokens, ends)]
    kinds, counts = np.unique(text, return_counts=True)
    is_known = [bool(model.tokenizer.decode([kind])) for kind in kinds.tolist()]
    unknown = int(counts.sum() - counts[is_known].sum())
    if unknown > MAX_UNKNOWN * len(text):
        raise DataError(
            f"{path}: the base's tokenizer does not know {unknown} of its {len(text)} tokens; expected text "
            f"of the language and kind that the base model was trained on"
        )
