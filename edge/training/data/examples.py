"""Examples of rows, one row after the other: tokens with labels, cut to what a batch may hold."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.backends.contract import Tokenizer
from edge.errors import ConfigError
from edge.training.data.conversations import Conversation
from edge.training.data.faults import Faults, Unusable
from edge.training.data.forms import Pair, Text, recognise
from edge.training.data.readers.rows import Rows
from edge.training.data.source import DataSource
from edge.training.data.turns import Piece, mark_turns
from edge.training.packing import Example


class Reading(NamedTuple):
    """A row that can be used."""

    number: int  # in the file
    form: str
    whole: list[Example]  # before anything was cut
    examples: list[Example]  # of at most `seq_tokens` + 1 tokens
    is_truncated: bool


def read_rows(
    rows: Rows, source: DataSource, tokenizer: Tokenizer, faults: Faults, *, seq_tokens: int
) -> Iterator[Reading]:
    """Reads the rows that can be used; the others are added to `faults`.

    Raises:
        DataError: The file cannot be read.
        ConfigError: `seq_tokens` is below 2.
    """
    if seq_tokens < 2:
        raise ConfigError(f"seq_tokens is {seq_tokens}, expected at least 2")
    for number, columns in rows.rows:
        faults.num_rows += 1
        try:
            if isinstance(columns, Unusable):
                raise columns
            form, value = recognise(columns, source)
            whole = make_examples(value, tokenizer, trains_on_prompt=source.train_on_prompt)
        except Unusable as error:
            faults.add(number, error)
            continue
        if isinstance(value, Text):
            yield Reading(number, form, whole, cut_text(whole[0], seq_tokens), False)
        else:
            is_truncated = any(len(example.tokens) > seq_tokens + 1 for example in whole)
            examples = [cut_example(example, seq_tokens) for example in whole]
            yield Reading(number, form, whole, examples, is_truncated)


def make_examples(
    value: Text | Pair | Conversation, tokenizer: Tokenizer, *, trains_on_prompt: bool
) -> list[Example]:
    """Makes the examples of a row, uncut; only a conversation may make several.

    Raises:
        Unusable: There is nothing in it to train on.
    """
    match value:
        case Text(text):
            groups: list[list[Piece]] = [[(text, True)]]
        case Pair(prompt, completion):
            groups = [[(prompt, False), (completion, True)]]
        case _:
            groups = mark_turns(value, tokenizer)
    return [_tokenize(pieces, tokenizer, trains_on_prompt) for pieces in groups]


def cut_text(example: Example, seq_tokens: int) -> list[Example]:
    """Cuts an example into several of at most `seq_tokens` + 1 tokens; every label is in one of them."""
    # Neighbours share one token, the last of one and the first of the next: each label is trained on once.
    starts = range(0, len(example.tokens) - 1, seq_tokens)
    pieces = [_part(example, slice(at, at + seq_tokens + 1)) for at in starts]
    for piece in pieces:
        piece.labels[0] = False
    return pieces


def cut_example(example: Example, seq_tokens: int) -> Example:
    """Cuts what is too much of an example off its beginning, and then off its end."""
    excess = len(example.tokens) - (seq_tokens + 1)
    if excess <= 0:
        return example
    first_label = int(np.argmax(example.labels))
    cut = min(excess, first_label - 1)  # the first token stays, bos where there is one
    keep = np.ones(len(example.tokens), np.bool_)
    keep[1 : cut + 1] = False
    return _part(example, np.flatnonzero(keep)[: seq_tokens + 1])


def _tokenize(pieces: Sequence[Piece], tokenizer: Tokenizer, trains_on_prompt: bool) -> Example:
    encoded = [tokenizer.encode(text) for text, _ in pieces]
    tokens = [token for piece in encoded for token in piece]
    marked = zip(encoded, pieces, strict=True)
    labels = [trains_on_prompt or trained for piece, (_, trained) in marked for _ in piece]
    if not encoded[-1]:
        raise Unusable("have nothing to train on that the tokenizer can spell")
    if tokenizer.eos_id is not None and tokenizer.eos_id not in encoded[-1]:
        tokens, labels = [*tokens, tokenizer.eos_id], [*labels, True]
    if tokenizer.bos_id is not None and tokens[0] != tokenizer.bos_id:
        tokens, labels = [tokenizer.bos_id, *tokens], [False, *labels]
    labels[0] = False
    if not any(labels):
        raise Unusable("are a single token, with nothing before it to predict it from")
    return Example(np.array(tokens, np.int32), np.array(labels, np.bool_))


def _part(example: Example, where: slice | NDArray[np.intp]) -> Example:
    return Example(example.tokens[where].copy(), example.labels[where].copy())
