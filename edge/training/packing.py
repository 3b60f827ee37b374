"""Examples packed into token rows: little padding, no example sees another, the same order everywhere.

An epoch's order comes from (seed, epoch). The shuffled examples are packed within windows of some sixteen
batches, longest first into the fullest row that takes them (best fit decreasing), and the window's rows are
shuffled again: so rows are full and batches still random. A position in the data is one integer, the number
of batches taken so far.
"""

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from edge.backends.contract import Batch

Rows = list[list[int]]  # rows of one batch, each a list of indices of examples
WIDTH_STEP = 32  # widths are multiples of it: few shapes, each fit for the vector units
WINDOW_BATCHES = 16  # examples of 10 to 400 tokens: windows of 1, 4, 16 batches lose 18, 7, 2 % to padding
FULL_ENOUGH = 0.95  # of a row's tokens in use; narrower rows have cheaper attention


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
        """One example as views of the buffers, or several."""
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
    """Batches without end, epoch after epoch, from the batch numbered `start`."""
    lengths = row_lengths(examples)
    for epoch in count():
        batches = pack_epoch(
            lengths, seq_tokens=seq_tokens, batch_tokens=batch_tokens, seed=seed, epoch=epoch
        )
        for rows in batches[start:]:
            yield build_batch(examples, rows, seq_tokens=seq_tokens)
        start = max(0, start - len(batches))


def iterate_once(examples: Sequence[Example], *, seq_tokens: int, batch_tokens: int) -> Iterator[Batch]:
    """Batches of every example once, for scoring; the order within them is not that of `examples`."""
    batches = pack_epoch(
        row_lengths(examples), seq_tokens=seq_tokens, batch_tokens=batch_tokens, seed=0, epoch=0
    )
    for rows in batches:
        yield build_batch(examples, rows, seq_tokens=seq_tokens)


def row_lengths(examples: Sequence[Example]) -> NDArray[np.int64]:
    """Room that each example takes in a row: its last token is only ever a target."""
    if isinstance(examples, Examples):
        return examples.lengths() - 1
    return np.array([len(example.tokens) - 1 for example in examples], dtype=np.int64)


def pack_epoch(
    lengths: NDArray[np.int64], *, seq_tokens: int, batch_tokens: int, seed: int, epoch: int
) -> list[Rows]:
    """The batches of one epoch, as rows of indices.

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
        rows = rest + _pack_window(window, lengths, seq_tokens, batch_tokens)
        rows = [rows[index] for index in random.permutation(len(rows))]
        full, rest = _group_rows(rows, lengths, seq_tokens, batch_tokens)
        batches += full
    return [*batches, rest] if rest else batches


def build_batch(examples: Sequence[Example], rows: Rows, *, seq_tokens: int) -> Batch:
    """Arrays of shape (rows, width), width the smallest multiple of 32 that fits, at most `seq_tokens`."""
    used = max(sum(len(examples[index].tokens) - 1 for index in row) for row in rows)
    shape = (len(rows), _width(used, seq_tokens))
    batch = Batch(
        tokens=np.zeros(shape, np.int32),
        targets=np.zeros(shape, np.int32),
        weights=np.zeros(shape, np.float32),
        segments=np.zeros(shape, np.int32),
        positions=np.zeros(shape, np.int32),
    )
    for row, indices in enumerate(rows):
        start = 0
        for segment, index in enumerate(indices, 1):
            tokens, labels = examples[index]
            place = (row, slice(start, start + len(tokens) - 1))
            batch.tokens[place] = tokens[:-1]
            batch.targets[place] = tokens[1:]
            batch.weights[place] = labels[1:]
            batch.segments[place] = segment
            batch.positions[place] = np.arange(len(tokens) - 1)
            start += len(tokens) - 1
    return batch


def split_batch(batch: Batch, micro_batch_tokens: int) -> list[Batch]:
    """Micro-batches of whole rows, at most `micro_batch_tokens` each where a row fits; 0 does not split."""
    num_rows, width = batch.tokens.shape
    step = max(1, micro_batch_tokens // width) if micro_batch_tokens else num_rows
    return [
        Batch(
            tokens=batch.tokens[at : at + step],
            targets=batch.targets[at : at + step],
            weights=batch.weights[at : at + step],
            segments=batch.segments[at : at + step],
            positions=batch.positions[at : at + step],
        )
        for at in range(0, num_rows, step)
    ]


def _pack_window(
    window: NDArray[np.int64], lengths: NDArray[np.int64], seq_tokens: int, batch_tokens: int
) -> Rows:
    # Rows just wide enough for the longest example have the cheapest attention; wider ones are filled better.
    # Of either, a whole number makes up a batch.
    total = int(lengths[window].sum())
    longest = _width(int(lengths[window].max(initial=1)), seq_tokens)
    num_rows = max(1, batch_tokens // longest)
    while True:
        room = min(max(batch_tokens // num_rows // WIDTH_STEP * WIDTH_STEP, longest), seq_tokens)
        rows = _best_fit(window, lengths, room)
        if num_rows == 1 or room == seq_tokens or total >= FULL_ENOUGH * room * len(rows):
            return rows
        num_rows //= 2


def _best_fit(window: NDArray[np.int64], lengths: NDArray[np.int64], room: int) -> Rows:
    descending = window[np.argsort(-lengths[window], kind="stable")]
    rows: Rows = []
    gaps: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index, length in zip(descending.tolist(), lengths[descending].tolist(), strict=True):
        at = bisect_left(gaps, (length, 0))
        if at == len(gaps):
            gap, row = room, len(rows)
            rows.append([])
        else:
            gap, row = gaps.pop(at)
        rows[row].append(index)
        if gap > length:
            insort(gaps, (gap - length, row))
    return rows


def _group_rows(
    rows: Rows, lengths: NDArray[np.int64], seq_tokens: int, batch_tokens: int
) -> tuple[list[Rows], Rows]:
    batches: list[Rows] = []
    batch: Rows = []
    widest = 0
    for row in rows:
        width = _width(int(lengths[row].sum()), seq_tokens)
        if batch and max(widest, width) * (len(batch) + 1) > batch_tokens:
            batches.append(batch)
            batch, widest = [], 0
        batch.append(row)
        widest = max(widest, width)
    return batches, batch


def _width(used: int, seq_tokens: int) -> int:
    return min(-(-used // WIDTH_STEP) * WIDTH_STEP, seq_tokens)
