"""Rows of one width, for a forward pass that takes no other form, and groups of examples of like lengths.

Batches are planned by such rows (`edge/training/packing.py`), so that one fits into memory whatever computes
it. A GPU computes in them, several examples a row; on a processor attention goes example by example, or each
example has a row of its own.

A kernel is compiled for each shape, by MLX on a GPU and by oneDNN for bfloat16 on a processor, and kept. On
data of unlike lengths every step would bring new ones: there sizes are rounded up to few.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.backends.contract import Batch

Rows = list[list[int]]  # by row, which examples lie in it
WIDTH_STEP = 32  # widths are multiples of it: few shapes, each fit for the vector units
FULL_ENOUGH = 0.95  # of a row's tokens in use; narrower rows have cheaper attention
ROW_TOKENS = 512  # of a packed row, unless one example is longer


class TokenRows(NamedTuple):
    """A batch laid out in rows; all but `places` are of shape (rows, width)."""

    tokens: NDArray[np.int32]  # 0 where there is padding
    segments: NDArray[np.int32]  # 1, 2, … for the examples of a row; 0 is padding
    positions: NDArray[np.int32]  # counted from 0 within each example
    places: NDArray[np.int64]  # (tokens,): where each token of the batch lies in the flattened rows


Layout = Callable[[Batch], TokenRows]


def one_row(batch: Batch, *, width: int = 0) -> TokenRows:
    """Lays all examples end to end into one row, of at least `width`."""
    return lay_out(batch, [range(batch.num_examples)], width=width)


def row_each(batch: Batch, *, width: int = 0) -> TokenRows:
    """Gives each example a row of its own: for models in which packed examples would see each other."""
    return lay_out(batch, [[index] for index in range(batch.num_examples)], width=width)


def pack_rows(batch: Batch) -> TokenRows:
    """Packs several examples into each row, as a GPU wants them."""
    longest = int(batch.lengths.max(initial=1))
    room = max(round_width(longest), ROW_TOKENS)
    rows = fit_rows(np.arange(batch.num_examples), batch.lengths, row_tokens=room, tokens=batch.num_tokens)
    widest = max(int(batch.lengths[row].sum()) for row in rows)
    return lay_out(batch, rows, width=round_width(widest))


def lay_out(batch: Batch, rows: Sequence[Sequence[int]], *, width: int = 0) -> TokenRows:
    """Lays the examples of `batch` out in `rows`, each example once, in rows of at least `width`."""
    order = np.fromiter(chain.from_iterable(rows), np.int64)
    counts = np.array([len(row) for row in rows])
    row, first = np.repeat(np.arange(len(rows)), counts), np.cumsum(counts) - counts
    lengths = batch.lengths[order]
    begins = np.cumsum(lengths) - lengths
    begins -= begins[first][row]  # now counted from each row's own beginning
    width = max(width, int((begins + lengths).max()))
    starts, segments = np.zeros_like(order), np.zeros_like(order)
    starts[order] = row * width + begins
    segments[order] = np.arange(len(order)) - first[row] + 1
    places = np.repeat(starts, batch.lengths) + batch.positions
    laid = np.zeros((3, len(rows) * width), np.int32)
    laid[:, places] = batch.tokens, segments[batch.owners], batch.positions
    tokens, numbers, positions = laid.reshape(3, len(rows), width)
    return TokenRows(tokens, numbers, positions, places)


def group_by_length(batch: Batch) -> list[Batch]:
    """Splits a batch into groups of like lengths: rows of one example each are at least 7/8 full in each."""
    groups: list[Batch] = []
    longest_first = np.argsort(-batch.lengths, kind="stable")
    while longest_first.size:
        lengths = batch.lengths[longest_first]
        count = np.count_nonzero(lengths * 8 >= lengths[0] * 7)
        groups.append(batch.select(longest_first[:count]))
        longest_first = longest_first[count:]
    return groups


def fit_rows(
    examples: NDArray[np.int64], lengths: NDArray[np.int64], *, row_tokens: int, tokens: int
) -> Rows:
    """Fits examples into rows, longest first into the fullest row that takes it (best fit decreasing).

    Rows just wide enough for the longest example have the cheapest attention; wider ones are filled better.
    Of either, a whole number makes up `tokens`.

    Args:
        examples: Indices into `lengths`.
        lengths: Tokens of each example, at most `row_tokens`.
        row_tokens: Longest row.
        tokens: Of one batch, padding included.
    """
    total = int(lengths[examples].sum())
    longest = round_width(int(lengths[examples].max(initial=1)), row_tokens)
    num_rows = max(1, tokens // longest)
    while True:
        room = min(max(tokens // num_rows // WIDTH_STEP * WIDTH_STEP, longest), row_tokens)
        rows = _best_fit(examples, lengths, room)
        if num_rows == 1 or room == row_tokens or total >= FULL_ENOUGH * room * len(rows):
            return rows
        num_rows //= 2


def round_width(used: int, most: int | None = None) -> int:
    """Rounds a row's used tokens up to a multiple of 32, and down to `most`."""
    width = -(-used // WIDTH_STEP) * WIDTH_STEP
    return width if most is None else min(width, most)


def round_up(count: int, *, sizes: int = 4) -> int:
    """Rounds up to one of so many `sizes`, a power of two, to each power of two, and to a multiple of 16.

    With 4 an eighth is filled up on average, with 8 a sixteenth.
    """
    step = max(16, (1 << count.bit_length()) // (2 * sizes))
    return -(-max(count, 1) // step) * step


def _best_fit(examples: NDArray[np.int64], lengths: NDArray[np.int64], room: int) -> Rows:
    descending = examples[np.argsort(-lengths[examples], kind="stable")]
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
