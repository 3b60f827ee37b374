"""How good a version is on held-out data: the one place where the coordinator loads the base model.

Merging needs no base model and no heavy library; scoring does, through the training wing's backends. The
model is loaded at the first score, in the thread that asks for it, and stays loaded.
"""

from pathlib import Path

from converters.adapter import LoraAdapter
from coordinator.server import Quality
from edge.training.backends import load_model
from edge.training.backends.base import Model
from edge.training.dataset import Dataset, DataSource, load_dataset
from edge.training.trainer import score_dataset


class Calibration:
    """Held-out data and the base model that reads it.

    Args:
        base: The base model's folder.
        data: JSONL.
        seq_tokens: Longest sequence.
        batch_tokens: Tokens of one forward pass.
    """

    def __init__(self, base: Path, data: Path, *, seq_tokens: int, batch_tokens: int) -> None:
        self._base = base
        self._source = DataSource(path=str(data))
        self._seq_tokens = seq_tokens
        self._batch_tokens = batch_tokens
        self._loaded: tuple[Model, Dataset] | None = None

    def load(self) -> tuple[Model, Dataset]:
        """The model and the tokenized data, read at the first call.

        Raises:
            MissingExtra: No backend is installed.
            BaseModelError: The base model cannot be loaded.
            DataError: The data cannot be used.
        """
        if self._loaded is None:
            model = load_model("auto", self._base)
            seq_tokens = min(self._seq_tokens, model.card.max_tokens)
            self._loaded = model, load_dataset(self._source, model.tokenizer, seq_tokens=seq_tokens)
        return self._loaded

    def score(self, adapter: LoraAdapter) -> Quality:
        """Loss and exact matches of the base with `adapter`, over all of the data.

        Raises:
            UnsupportedAdapter: The adapter does not fit the base.
        """
        model, dataset = self.load()
        model.set_adapter(adapter)
        seq_tokens = min(self._seq_tokens, model.card.max_tokens)
        found = score_dataset(model, dataset, seq_tokens=seq_tokens, batch_tokens=self._batch_tokens)
        return Quality(found.loss, found.exact_match)
