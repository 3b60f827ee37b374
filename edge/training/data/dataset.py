r"""Training data of any known form, tokenized, with labels on what is trained on.

| a row says | tokens | labelled |
|---|---|---|
| a text | bos, text, eos | everything |
| a prompt and its completion | bos, prompt, completion, eos | completion and eos |
| a conversation | the base's chat template | what the assistant writes, in every turn |

Which columns say what: `edge/training/data/forms.py`. Prompt and completion are joined as they stand: no
space or line break is put between them. Bos and eos stand only where the base model has them, and only once
where a chat template already writes them.

A text longer than `seq_tokens` is cut into several examples. Of any other example that is too long the
beginning is dropped (bos stays) as far as it carries no label, and then the end; such rows are counted,
and the count is part of every report. Rows that cannot be used are an error that names each reason once:
nothing is left out in silence.
"""

import hashlib
from typing import NamedTuple

from edge.backends.contract import Tokenizer
from edge.training.data.examples import read_rows
from edge.training.data.faults import Faults
from edge.training.data.forms import Asking, asking_of, wanted_columns
from edge.training.data.readers.rows import open_rows
from edge.training.data.source import DataSource as DataSource
from edge.training.packing import Example, Examples


class Dataset(NamedTuple):
    """All examples of a source."""

    examples: Examples
    num_truncated: int  # rows of which something was cut away
    digest: str  # sha256 hex of all tokens and labels
    asking: Asking = "plain"  # how a model is to be asked that was trained on it


def load_dataset(source: DataSource, tokenizer: Tokenizer, *, seq_tokens: int) -> Dataset:
    """Reads, checks and tokenizes a source; an example holds at most `seq_tokens` + 1 tokens.

    Raises:
        DataError: The file cannot be read, is empty, or has rows that cannot be used: each reason once, with
            its count and the first rows that have it.
        MissingExtra: A library is needed to read it.
        ConfigError: `seq_tokens` is below 2.
    """
    rows = open_rows(source.path, wanted_columns(source))
    faults = Faults(rows.path, rows.unit)
    examples = Examples()
    digest = hashlib.sha256()
    forms: set[str] = set()
    num_truncated = 0
    for reading in read_rows(rows, source, tokenizer, faults, seq_tokens=seq_tokens):
        forms.add(reading.form)
        num_truncated += reading.is_truncated
        for example in reading.examples:
            examples.append(example)
            _add_to(digest, example)
    faults.check()
    return Dataset(examples, num_truncated, digest.hexdigest(), asking_of(forms))


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Encodes a prompt to generate from, as a prompt of the training data is."""
    tokens = tokenizer.encode(prompt)
    starts = tokenizer.bos_id is None or tokens[:1] == [tokenizer.bos_id]
    return tokens if starts else [int(tokenizer.bos_id or 0), *tokens]


def _add_to(digest: "hashlib._Hash", example: Example) -> None:
    digest.update(len(example.tokens).to_bytes(8, "little"))
    digest.update(example.tokens.tobytes() + example.labels.tobytes())
