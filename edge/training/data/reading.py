"""Rows that became examples, one after the other."""

from collections.abc import Iterator
from typing import NamedTuple

from edge.backends.contract import Tokenizer
from edge.errors import ConfigError
from edge.training.data.examples import cut_example, cut_text, make_examples
from edge.training.data.faults import Faults, Unusable
from edge.training.data.forms import Text, recognise
from edge.training.data.readers.rows import Rows
from edge.training.data.source import DataSource
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
