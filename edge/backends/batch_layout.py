"""What a batch asks of a model besides its forward pass: the labelled positions, and sums over examples.

Logits are computed at labelled positions only: on instruction data that is a fraction of all tokens, and with
a vocabulary of 32,000 the head is a third of a small model's work.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.backends.contract import Batch, Score


class Labels(NamedTuple):
    """The labelled positions of a batch, in order of row and column; all of shape (labels,)."""

    places: NDArray[np.int64]  # into the batch's positions, flattened
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]


def find_labels(batch: Batch) -> Labels:
    """Positions whose weight is not 0."""
    places = np.flatnonzero(batch.weights)
    return Labels(places, batch.targets.ravel()[places].astype(np.int64), batch.weights.ravel()[places])


def sum_score(
    batch: Batch, labels: Labels, losses: NDArray[np.floating], predicted: NDArray[np.integer]
) -> Score:
    """Sums over a batch from the loss and the most likely token at each label."""
    is_correct = predicted == labels.targets
    example = number_examples(batch).ravel()[labels.places]
    num_labels, num_wrong = np.bincount(example), np.bincount(example, ~is_correct)
    return Score(
        loss_sum=float(losses.astype(np.float64) @ labels.weights),
        weight_sum=float(labels.weights.sum(dtype=np.float64)),
        num_correct=int(is_correct.sum()),
        num_labels=len(is_correct),
        num_exact=int(np.count_nonzero((num_labels > 0) & (num_wrong == 0))),
        num_examples=int(np.count_nonzero(num_labels)),
    )


def number_examples(batch: Batch) -> NDArray[np.int64]:
    """The example of each position, from 1 in order of row and segment; 0 is padding: (rows, width).

    An example is a pair of row and segment, whatever the numbers of segments are: a row cut out of a wider
    one may bear a number above its own width.
    """
    num_rows = len(batch.segments)
    above = int(batch.segments.max(initial=0)) + 1
    pairs = batch.segments + above * np.arange(num_rows, dtype=np.int64)[:, None]
    used = batch.segments > 0
    numbers = np.zeros(pairs.shape, np.int64)
    numbers[used] = np.unique(pairs[used], return_inverse=True)[1] + 1
    return numbers


def average_examples(batch: Batch, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of `hidden` (rows, width, size) over each example: (examples, size), by row and segment."""
    used = batch.segments > 0
    example = number_examples(batch)[used] - 1
    sums = np.zeros((int(example.max(initial=-1)) + 1, hidden.shape[-1]), np.float64)
    np.add.at(sums, example, hidden[used])
    means: NDArray[np.float32] = (sums / np.bincount(example)[:, None]).astype(np.float32)
    return means


def mean_weights(batch: Batch) -> NDArray[np.float32]:
    """What each position, flattened, counts in the mean of each example: (examples, positions).

    A product with it is `average_examples`, and can be differentiated; unlike a sum by index it is the same
    to the last bit on a GPU, too.
    """
    used = np.flatnonzero(batch.segments)
    example = number_examples(batch).ravel()[used] - 1
    weights = np.zeros((int(example.max(initial=-1)) + 1, batch.segments.size), np.float32)
    weights[:, used] = mean_rows(example)
    return weights


def mean_rows(example: NDArray[np.integer]) -> NDArray[np.float32]:
    """Rows by which a product takes means: (examples, tokens), for the example of each token, from 0."""
    lengths = np.bincount(example)
    rows = np.zeros((len(lengths), len(example)), np.float32)
    rows[example, np.arange(len(example))] = 1 / lengths[example]
    return rows


def unpack(batch: Batch) -> Batch:
    """The same examples, one a row: for models in which packed examples would see each other."""
    used = batch.segments > 0
    row = number_examples(batch)[used] - 1
    place = (row, batch.positions[used])
    shape = (int(row.max(initial=0)) + 1, int(place[1].max(initial=0)) + 1)
    unpacked = Batch._make(np.zeros(shape, field.dtype) for field in batch)
    for new, old in zip(unpacked, batch, strict=True):
        new[place] = old[used]
    unpacked.segments[place] = 1
    return unpacked


def flatten(batch: Batch) -> Batch:
    """The same examples in one row without padding, segments numbered through: shape (1, useful tokens)."""
    used = batch.segments > 0
    flat = Batch._make(field[used][None] for field in batch)
    return flat._replace(segments=number_examples(batch)[used][None].astype(np.int32))


def group_by_length(batch: Batch) -> list[Batch]:
    """The same examples, one a row, in batches of like lengths: rows are at least 7/8 full."""
    flat = flatten(batch)
    lengths = np.bincount(flat.segments[0], minlength=1)[1:]
    starts = np.cumsum(lengths) - lengths
    groups: list[Batch] = []
    longest_first = np.argsort(-lengths, kind="stable")
    while longest_first.size:
        width = lengths[longest_first[0]]
        count = np.count_nonzero(lengths[longest_first] * 8 >= width * 7)
        chosen, longest_first = longest_first[:count], longest_first[count:]
        columns = np.arange(width)
        is_used = columns < lengths[chosen, None]
        place = np.where(is_used, starts[chosen, None] + columns, 0)
        group = Batch._make(np.where(is_used, field[0][place], 0).astype(field.dtype) for field in flat)
        groups.append(
            group._replace(segments=is_used.astype(np.int32))
        )  # each row's only example is its first
    return groups
