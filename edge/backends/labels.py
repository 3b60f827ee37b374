"""What a batch asks of a model besides its forward pass: the labelled positions, and sums over examples.

Logits are computed at labelled positions only: on instruction data that is a fraction of all tokens, and with
a vocabulary of 32,000 the head is a third of a small model's work.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.backends.batch_layout import TokenRows
from edge.backends.contract import Batch, Score


class Labels(NamedTuple):
    """The labelled positions of a batch, in order; all of shape (labels,)."""

    places: NDArray[np.int64]  # into the batch's tokens
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]


def find_labels(batch: Batch) -> Labels:
    """Returns the positions whose weight is not 0."""
    places = np.flatnonzero(batch.weights)
    return Labels(places, batch.targets[places].astype(np.int64), batch.weights[places])


def fill_labels(labels: Labels, count: int) -> Labels:
    """Lengthens to `count` labels: those that are added lie at the first position and weigh 0."""
    return Labels._make(np.pad(field, (0, count - len(labels.places))) for field in labels)


def sum_score(
    batch: Batch, labels: Labels, losses: NDArray[np.floating], predicted: NDArray[np.integer]
) -> Score:
    """Sums up a batch from the loss and the most likely token at each label."""
    is_correct = predicted == labels.targets
    example = batch.owners[labels.places]
    num_labels, num_wrong = np.bincount(example), np.bincount(example, ~is_correct)
    return Score(
        loss_sum=float(losses.astype(np.float64) @ labels.weights),
        weight_sum=float(labels.weights.sum(dtype=np.float64)),
        num_correct=int(is_correct.sum()),
        num_labels=len(is_correct),
        num_exact=int(np.count_nonzero((num_labels > 0) & (num_wrong == 0))),
        num_examples=int(np.count_nonzero(num_labels)),
    )


def average_examples(batch: Batch, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    """Averages `hidden`, (tokens, size), over each example: (examples, size)."""
    sums = np.zeros((batch.num_examples, hidden.shape[-1]), np.float64)
    np.add.at(sums, batch.owners, hidden)
    means: NDArray[np.float32] = (sums / batch.lengths[:, None]).astype(np.float32)
    return means


def mean_weights(batch: Batch, rows: TokenRows | None = None) -> NDArray[np.float32]:
    """Returns what each position counts in the mean of each example: (examples, positions).

    A product with it is `average_examples`, and can be differentiated; unlike a sum by index it is the same
    to the last bit on a GPU, too. Positions are those of the flattened `rows`, or else the batch's tokens.
    """
    places = np.arange(batch.num_tokens) if rows is None else rows.places
    size = batch.num_tokens if rows is None else rows.tokens.size
    weights = np.zeros((batch.num_examples, size), np.float32)
    weights[batch.owners, places] = 1 / batch.lengths[batch.owners]
    return weights
