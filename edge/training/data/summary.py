"""What there is to know of data before it is trained on; the tokens of one row at a time are in memory."""

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edge.backends.contract import Tokenizer
from edge.training.data.examples import read_rows
from edge.training.data.faults import Faults
from edge.training.data.forms import wanted_columns
from edge.training.data.readers.rows import open_rows
from edge.training.data.source import DataSource
from edge.training.packing import Example

NUM_SHOWN = 3
_EMPTY = "have an empty "  # how the reasons of `forms.py` and `conversations.py` begin


class Shown(Struct, frozen=True):
    """An example as it is trained on."""

    row: int  # its line or row in the file
    tokens: list[int]
    pieces: list[str]  # text of each token
    is_trained_on: list[bool]


class Bin(Struct, frozen=True):
    """Examples of similar length."""

    first: int  # tokens
    last: int  # the last one counts
    num_examples: int


class Lengths(Struct, frozen=True):
    """Tokens of the examples before anything is cut."""

    shortest: int
    median: int
    percentile_90: int
    longest: int
    histogram: list[Bin]


class Summary(Struct, frozen=True, kw_only=True):
    """Counts over a file; of tokens before anything is cut."""

    path: str  # the file that is read, also where a folder was named
    unit: str  # what rows are numbered by: `line` or `row`
    num_rows: int
    forms: dict[str, int]  # rows of each form
    num_examples: int  # that are trained on, after long texts were cut into several
    num_tokens: int
    num_labels: int  # tokens that are trained on
    lengths: Lengths | None  # None where no row can be used
    seq_tokens: int
    num_split: int  # texts that become several examples, losing nothing
    num_truncated: int  # other rows that are cut
    num_tokens_lost: int
    num_labels_lost: int
    num_duplicates: int  # rows whose tokens and labels an earlier row has, too
    num_empty: int  # rows without anything to train on, all of which are unusable
    num_unusable: int
    faults: list[dict[str, Any]]  # each reason with its count and first rows
    hints: list[str]  # what to do about them
    examples: list[Shown]  # the first ones


def summarise(source: DataSource, tokenizer: Tokenizer, *, seq_tokens: int) -> Summary:
    """Reads all of a source.

    Raises:
        DataError: The file cannot be read.
        MissingExtra: A library is needed to read it.
    """
    rows = open_rows(source.path, wanted_columns(source))
    faults = Faults(rows.path, rows.unit)
    forms: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    lengths: list[int] = []
    known: set[bytes] = set()
    shown: list[Shown] = []
    for reading in read_rows(rows, source, tokenizer, faults, seq_tokens=seq_tokens):
        forms[reading.form] += 1
        sums += _count(reading.whole, reading.examples)
        sums["num_truncated"] += reading.is_truncated
        sums["num_split"] += not reading.is_truncated and len(reading.examples) > len(reading.whole)
        lengths += [len(example.tokens) for example in reading.whole]
        print_ = _fingerprint(reading.whole)
        sums["num_duplicates"] += print_ in known
        known.add(print_)
        for example in reading.examples[: NUM_SHOWN - len(shown)]:
            shown.append(_show(reading.number, example, tokenizer))
    report = faults.report()
    return Summary(
        path=rows.path,
        unit=rows.unit,
        num_rows=faults.num_rows,
        forms=dict(forms),
        lengths=measure(np.array(lengths, np.int64)) if lengths else None,
        seq_tokens=seq_tokens,
        num_empty=sum(fault["count"] for fault in report if fault["reason"].startswith(_EMPTY)),
        num_unusable=faults.num_unusable,
        faults=report,
        hints=faults.hints,
        examples=shown,
        **{name: sums[name] for name in _SUMS},
    )


_SUMS = (
    "num_examples",
    "num_tokens",
    "num_labels",
    "num_split",
    "num_truncated",
    "num_tokens_lost",
    "num_labels_lost",
    "num_duplicates",
)


def measure(lengths: NDArray[np.int64]) -> Lengths:
    """Measures how lengths spread, with a histogram whose bins double in width."""
    top = int(np.log2(lengths.max()))
    edges = [(1 << power, (2 << power) - 1) for power in range(int(np.log2(lengths.min())), top + 1)]
    bins = [Bin(low, high, int(np.sum((lengths >= low) & (lengths <= high)))) for low, high in edges]
    shortest, median, percentile_90, longest = (
        int(length) for length in np.quantile(lengths, (0, 0.5, 0.9, 1), method="higher")
    )
    return Lengths(shortest, median, percentile_90, longest, bins)


def _count(whole: Sequence[Example], cut: Sequence[Example]) -> Counter[str]:
    labels, kept = (sum(int(one.labels.sum()) for one in examples) for examples in (whole, cut))
    tokens = sum(len(example.tokens) for example in whole)
    # Neighbouring parts of a text share one token.
    left = sum(len(example.tokens) for example in cut) - max(0, len(cut) - len(whole))
    return Counter(
        num_examples=len(cut),
        num_tokens=tokens,
        num_labels=labels,
        num_tokens_lost=tokens - left,
        num_labels_lost=labels - kept,
    )


def _fingerprint(examples: Sequence[Example]) -> bytes:
    digest = blake2b(digest_size=8)
    for example in examples:
        digest.update(example.tokens.tobytes() + example.labels.tobytes())
    return digest.digest()


def _show(row: int, example: Example, tokenizer: Tokenizer) -> Shown:
    tokens = example.tokens.tolist()
    return Shown(row, tokens, [tokenizer.piece(token) for token in tokens], example.labels.tolist())
