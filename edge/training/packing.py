"""Examples put together into batches: the same examples in the same order on every device and backend.

An epoch's order comes from (seed, epoch). A batch is planned as rows of one width, so that it fits into
memory whatever computes it: the shuffled examples are packed within windows of some sixteen batches, longest
first into the fullest row that takes them (best fit decreasing), and the window's rows are shuffled again. So
rows are full and batches still random. A position in the data is one integer, the number of batches taken so
far.

What is handed to a backend has no rows: examples lie end to end (`edge.backends.contract.Batch`).
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from edge.backends.batch_layout import Rows, fit_rows, round_width
from edge.backends.contract import Batch

WINDOW_BATCHES = 16  # examples of 10 to 400 tokens: windows of 1, 4, 16 batches lose 18, 7, 2 % to padding


class Example(NamedTuple):
    """One example's tokens; those that are trained on are labelled."""

    tokens: NDArray[np.int32]  # (n,), n >= 2
    labels: NDArray[np.bool_]  # (n,), True where the token is to be predicted; the first never is


class Examples(Sequence[Example]):
    """Examples end to end in two buffers: an object for each would take more than its tokens do."""

    def __init__(self) -> None:
        self._tokens, self._labels = array("i"), bytearray()
        self._ends = array("q", [0])

    def append(self, example: Example) -> None:
        """Adds one; views that were taken before must be gone."""
        self._tokens.frombytes(example.tokens.astype(np.int32, copy=False).tobytes())
        self._labels += example.labels.tobytes()
        self._ends.append(len(self._labels))

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        ends = np.frombuffer(self._ends, np.int64)
        return ends[1:] - ends[:-1]

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """Returns one example as views of the buffers, or several."""
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]  # also from the end; beyond it is an IndexError
        start, end = self._ends[at], self._ends[at + 1]
        return Example(
            np.frombuffer(self._tokens, np.int32, end - start, 4 * start),
            np.frombuffer(self._labels, np.bool_, end - start, start),
        )


def iterate_batches(
    examples: Sequence[Example], *, seq_tokens: int, batch_tokens: int, seed: int, start: int = 0
) -> Iterator[Batch]:
    """Yields batches without end, epoch after epoch, from the batch numbered `start`."""
    lengths = row_lengths(examples)
    for epoch in count():
        batches = pack_epoch(
            lengths, seq_tokens=seq_tokens, batch_tokens=batch_tokens, seed=seed, epoch=epoch
        )
        for rows in batches[start:]:
            yield build_batch(examples[index] for row in rows for index in row)
        start = max(0, start - len(batches))


def iterate_once(examples: Sequence[Example], *, seq_tokens: int, batch_tokens: int) -> Iterator[Batch]:
    """Yields batches of every example once, for scoring; their order is not that of `examples`."""
    batches = pack_epoch(
        row_lengths(examples), seq_tokens=seq_tokens, batch_tokens=batch_tokens, seed=0, epoch=0
    )
    for rows in batches:
        yield build_batch(examples[index] for row in rows for index in row)


def row_lengths(examples: Sequence[Example]) -> NDArray[np.int64]:
    """Returns the room that each example takes in a row: its last token is only ever a target."""
    if isinstance(examples, Examples):
        return examples.lengths() - 1
    return np.array([len(example.tokens) - 1 for example in examples], dtype=np.int64)


def pack_epoch(
    lengths: NDArray[np.int64], *, seq_tokens: int, batch_tokens: int, seed: int, epoch: int
) -> list[Rows]:
    """Plans the batches of one epoch, as rows of indices.

    Rows times their width never exceed `batch_tokens`, unless a single row does.

    Args:
        lengths: Row tokens of each example, each from 1 to `seq_tokens`.
        seq_tokens: Longest row.
        batch_tokens: Of one batch, padding included.
        seed: With `epoch`, of the order.
        epoch: Counted from 0.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    ends = np.cumsum(lengths[order])
    windows = np.split(order, np.flatnonzero(np.diff(ends // (WINDOW_BATCHES * batch_tokens))) + 1)
    batches: list[Rows] = []
    rest: Rows = []
    for window in windows:
        rows = rest + fit_rows(window, lengths, row_tokens=seq_tokens, tokens=batch_tokens)
        rows = [rows[index] for index in random.permutation(len(rows))]
        full, rest = _group_rows(rows, lengths, seq_tokens, batch_tokens)
        batches += full
    return [*batches, rest] if rest else batches


def build_batch(examples: Iterable[Example]) -> Batch:
    """Joins at least one example into a batch, in their order."""
    chosen = list(examples)
    return Batch(
        tokens=np.concatenate([example.tokens[:-1] for example in chosen]),
        targets=np.concatenate([example.tokens[1:] for example in chosen]),
        weights=np.concatenate([example.labels[1:] for example in chosen]).astype(np.float32),
        lengths=row_lengths(chosen),
    )


def split_batch(batch: Batch, micro_batch_tokens: int) -> list[Batch]:
    """Splits into micro-batches of whole examples, each of at most `micro_batch_tokens` where its first fits.

    0 does not split.
    """
    if not micro_batch_tokens:
        return [batch]
    parts: list[list[int]] = []
    held = 0
    for index, length in enumerate(batch.lengths.tolist()):
        if not parts or held + length > micro_batch_tokens:
            parts.append([])
            held = 0
        parts[-1].append(index)
        held += length
    return [batch.select(np.array(part)) for part in parts]


def _group_rows(
    rows: Rows, lengths: NDArray[np.int64], seq_tokens: int, batch_tokens: int
) -> tuple[list[Rows], Rows]:
    batches: list[Rows] = []
    batch: Rows = []
    widest = 0
    for row in rows:
        width = round_width(int(lengths[row].sum()), seq_tokens)
        if batch and max(widest, width) * (len(batch) + 1) > batch_tokens:
            batches.append(batch)
            batch, widest = [], 0
        batch.append(row)
        widest = max(widest, width)
    return batches, batch
