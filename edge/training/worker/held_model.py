"""A base model that is in memory in one precision at a time, and loaded again where another is asked for.

Training goes on in what it began in, scores are taken in float32. Weights that were rounded to bfloat16 do
not come back, so the files are read again.
"""

import gc
from collections.abc import Callable
from pathlib import Path

from edge.backends.contract import TrainableModel
from edge.choices import Precision
from edge.training.checkpoint import checkpoint_precision


class HeldModel:
    """A loaded base model.

    Args:
        load: Loads it in a precision.
        precision: To train in. `auto` is decided by the backend, here and now, and then stays.

    Raises:
        TunefleetError: It cannot be loaded.
    """

    def __init__(self, load: Callable[[Precision], TrainableModel], precision: Precision) -> None:
        self._load, self._asked = load, precision
        self.model = load(precision)
        self.card = self.model.card  # as it trains

    def compute_in(self, precision: Precision) -> None:
        """Makes `model` compute in `precision`; `auto` is what it trains in.

        Raises:
            OutOfMemory: It does not fit; the model is there as it trains.
        """
        wanted = self.card.precision if precision == "auto" else precision
        if self.model.card.precision == wanted:
            return
        del self.model
        gc.collect()  # a model of torch refers to itself, and the two need not fit together
        try:
            self.model = self._load(wanted)
        except BaseException:
            self.model = self._load(self.card.precision)
            raise

    def train_on(self, folder: Path) -> None:
        """Makes `model` compute in what the checkpoint in `folder` was trained in, or else as it trains.

        A precision that was asked for stays: `trainer.train` refuses a checkpoint in another.
        """
        begun_in = checkpoint_precision(folder) if self._asked == "auto" else None
        self.compute_in(begun_in or "auto")
