"""Data that is looked through before anything else is begun: every row, without its tokens.

A client checks its data before it connects or loads a model. Only conversations need something of the base
model for that: its chat template, which stands with the tokenizer.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from edge.backends.contract import Tokenizer
from edge.training.data.conversations import Conversation
from edge.training.data.faults import Faults, Unusable
from edge.training.data.forms import recognise, wanted_columns
from edge.training.data.readers.folders import locate
from edge.training.data.readers.rows import open_rows
from edge.training.data.source import DataSource
from edge.training.data.turns import mark_turns


class Checked(NamedTuple):
    """Data all of whose rows can be used."""

    path: str  # the file that is read, also where a folder was named
    num_rows: int
    forms: dict[str, int]  # rows of each form

    def __str__(self) -> str:
        return f"{self.num_rows:,} rows of {' and of '.join(self.forms)} in {self.path}"


def check_source(source: DataSource, load_tokenizer: Callable[[], Tokenizer] | None = None) -> Checked:
    """Reads all rows of a source.

    Args:
        source: What to read.
        load_tokenizer: Called once if there are conversations; without it their form alone is checked.

    Raises:
        DataError: The file cannot be read, is empty, or has rows that cannot be used.
        MissingExtra: A library is needed to read it.
    """
    rows = open_rows(source.path, wanted_columns(source))
    faults = Faults(rows.path, rows.unit)
    forms: Counter[str] = Counter()
    tokenizer: Tokenizer | None = None
    for number, columns in rows.rows:
        faults.num_rows += 1
        try:
            if isinstance(columns, Unusable):
                raise columns
            form, value = recognise(columns, source)
            if isinstance(value, Conversation) and load_tokenizer:
                tokenizer = tokenizer or load_tokenizer()
                mark_turns(value, tokenizer)
            forms[form] += 1
        except Unusable as error:
            faults.add(number, error)
    faults.check()
    return Checked(rows.path, faults.num_rows, dict(forms))


def held_out(source: DataSource) -> DataSource:
    """Names the part of a folder that is for validation or tests, and else the file itself.

    Raises:
        DataError: There is nothing, or no such part, and what there is instead.
    """
    return structs.replace(source, path=str(locate(Path(source.path), is_held_out=True)))
