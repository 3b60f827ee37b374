"""How well a model predicts a dataset."""

import numpy as np

from edge.backends.contract import Model
from edge.training.data.dataset import Dataset
from edge.training.packing import iterate_once
from edge.training.requests import Evaluation


def score_dataset(model: Model, dataset: Dataset, *, seq_tokens: int, batch_tokens: int) -> Evaluation:
    """Scores every example once with the model's present adapter."""
    batches = iterate_once(dataset.examples, seq_tokens=seq_tokens, batch_tokens=batch_tokens)
    sums = np.sum([model.score(batch) for batch in batches], axis=0)
    loss, weight, correct, labels, exact, examples = sums.tolist()
    return Evaluation(
        loss=loss / weight,
        accuracy=correct / labels,
        exact_match=exact / examples,
        num_labels=int(labels),
        num_examples=int(examples),
        num_truncated=dataset.num_truncated,
        precision=model.card.precision,
    )
