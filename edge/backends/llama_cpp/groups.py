"""A batch cut into groups of whole examples, each of which llama.cpp computes at once.

An example is a sequence of its own, so none sees another, and there is no padding.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.backends.batch_layout import flatten, mean_rows
from edge.backends.contract import Batch
from edge.backends.llama_cpp.native import MAX_SEQUENCES

GROUP_TOKENS = 256  # unless one example is longer; with 512 attention costs more than fewer passes save


class Group(NamedTuple):
    """Some examples of a batch, end to end; all of shape (tokens,)."""

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    sequences: NDArray[np.int32]  # counted from 0
    targets: NDArray[np.int32]
    weights: NDArray[np.float32]

    @property
    def is_label(self) -> NDArray[np.bool_]:
        """Where the next token is trained on."""
        return np.not_equal(self.weights, 0)

    @property
    def means(self) -> NDArray[np.float32]:
        """Rows by which a product takes each example's mean: (examples, tokens)."""
        return mean_rows(self.sequences)


def make_groups(batch: Batch, *, needs_labels: bool = True) -> Iterator[Group]:
    """The batch's examples in order; those without a label are left out unless all are needed."""
    flat = flatten(batch)
    lengths = np.bincount(flat.segments[0], minlength=1)[1:].tolist()
    starts = np.cumsum([0, *lengths]).tolist()
    chosen: list[int] = []
    held = 0
    for index, length in enumerate(lengths):
        if needs_labels and not flat.weights[0, starts[index] : starts[index + 1]].any():
            continue
        if chosen and (held + length > GROUP_TOKENS or len(chosen) == MAX_SEQUENCES):
            yield _gather(flat, chosen, starts)
            chosen, held = [], 0
        chosen.append(index)
        held += length
    if chosen:
        yield _gather(flat, chosen, starts)


def _gather(flat: Batch, chosen: Sequence[int], starts: Sequence[int]) -> Group:
    columns = np.concatenate([np.arange(starts[index], starts[index + 1]) for index in chosen])
    _, sequences = np.unique(flat.segments[0, columns], return_inverse=True)
    return Group(
        tokens=flat.tokens[0, columns],
        positions=flat.positions[0, columns],
        sequences=sequences.astype(np.int32),
        targets=flat.targets[0, columns],
        weights=flat.weights[0, columns],
    )
