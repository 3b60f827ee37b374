r"""Training data from JSONL: one example a line, tokenized, with labels on what is trained on.

| a line holds | tokens | labelled |
|---|---|---|
| `{"text"}` | bos, text, eos | everything |
| `{"prompt", "completion"}`, or two named columns | bos, prompt, completion, eos | completion and eos |
| `{"messages": [{"role", "content"}, …]}` | the base's chat template | what an assistant turn adds |

Prompt and completion are joined as they stand: no space or line break is put between them. Bos and eos stand
only where the base model has them, and only once where a chat template already writes them.

A text longer than `seq_tokens` is cut into several examples. Of any other example that is too long the
beginning is dropped (bos stays) as far as it carries no label, and then the end; such examples are counted,
and the count is part of every report. Lines that cannot be used are an error that names them all: nothing is
left out in silence.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edge.errors import ConfigError, DataError
from edge.training.backends.base import Tokenizer
from edge.training.packing import Example

MAX_REASONS = 5  # of one error message; further bad lines are given by number
MAX_NUMBERS = 20
Piece = tuple[str, bool]  # text, and whether it is trained on


class DataSource(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A JSONL file and how to read it."""

    path: str
    prompt_column: str | None = None
    completion_column: str | None = None
    train_on_prompt: bool = False


class Dataset(NamedTuple):
    """All examples of a source."""

    examples: list[Example]
    num_truncated: int  # examples of which something was cut away
    digest: str  # sha256 hex of all tokens and labels


def load_dataset(source: DataSource, tokenizer: Tokenizer, *, seq_tokens: int) -> Dataset:
    """Reads, checks and tokenizes a source; an example holds at most `seq_tokens` + 1 tokens.

    Raises:
        DataError: The file cannot be read, is empty, or has lines that cannot be used: each with its number
            and reason (the first five reasons).
        ConfigError: `seq_tokens` is below 2.
    """
    if seq_tokens < 2:
        raise ConfigError(f"seq_tokens is {seq_tokens}, expected at least 2")
    examples: list[Example] = []
    faults: list[tuple[int, str]] = []
    num_truncated = num_lines = 0
    for number, line in _lines(source.path):
        num_lines += 1
        try:
            made, is_cut = _examples(line, source, tokenizer, seq_tokens)
        except DataError as error:
            faults.append((number, str(error)))
        else:
            examples += made
            num_truncated += is_cut
    if faults:
        raise DataError(_report(source.path, faults, num_lines))
    if not examples:
        raise DataError(f"{source.path}: holds no examples; expected one JSON object a line")
    return Dataset(examples, num_truncated, _digest(examples))


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Tokens to generate from, made as a prompt of the training data is."""
    tokens = tokenizer.encode(prompt)
    starts = tokenizer.bos_id is None or tokens[:1] == [tokenizer.bos_id]
    return tokens if starts else [int(tokenizer.bos_id or 0), *tokens]


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if content.strip():
                    yield number, content
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _examples(
    line: bytes, source: DataSource, tokenizer: Tokenizer, seq_tokens: int
) -> tuple[list[Example], bool]:
    row = _decode(line)
    if "messages" in row and source.prompt_column is None and source.completion_column is None:
        pieces = _message_pieces(row["messages"], tokenizer)
    else:
        pieces = _column_pieces(row, source)
    is_text = len(pieces) == 1
    example = _tokenize(pieces, tokenizer, train_on_prompt=source.train_on_prompt)
    if len(example.tokens) <= seq_tokens + 1:
        return [example], False
    return (_split(example, seq_tokens), False) if is_text else ([_truncate(example, seq_tokens)], True)


def _decode(line: bytes) -> dict[str, Any]:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else f"not JSON: {error}"
        raise DataError(reason) from error
    if not isinstance(row, dict):
        raise DataError(f"holds {type(row).__name__}, expected an object")
    return row


def _column_pieces(row: Mapping[str, Any], source: DataSource) -> list[Piece]:
    named = source.prompt_column is not None or source.completion_column is not None
    columns = (source.prompt_column or "prompt", source.completion_column or "completion")
    if not named and "text" in row and not all(column in row for column in columns):
        return [(_string(row, "text"), True)]
    absent = [column for column in columns if column not in row]
    if absent:
        hint = "" if named else "; expected text, prompt and completion, or messages; or name the columns"
        raise DataError(f"lacks {' and '.join(absent)} (has {', '.join(row) or 'nothing'}){hint}")
    return [(_string(row, columns[0]), False), (_string(row, columns[1]), True)]


def _string(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise DataError(f"{column} is {type(value).__name__}, expected a string")
    return value


def _message_pieces(messages: Any, tokenizer: Tokenizer) -> list[Piece]:
    try:
        turns = msgspec.convert(messages, list[dict[str, Any]])
        turns = [{"role": _string(turn, "role"), "content": _string(turn, "content")} for turn in turns]
    except (msgspec.ValidationError, KeyError) as error:
        raise DataError("messages must be a list of objects with role and content") from error
    ends = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not ends:
        raise DataError("messages have no assistant turn to train on")
    pieces: list[Piece] = []
    done = ""
    for number in ends:
        before = tokenizer.render(turns[:number], add_generation_prompt=True)
        after = tokenizer.render(turns[: number + 1], add_generation_prompt=False)
        if not (before.startswith(done) and after.startswith(before)):
            raise DataError(f"the chat template rewrites what stands before message {number + 1}")
        pieces += [(before[len(done) :], False), (after[len(before) :], True)]
        done = after
    return pieces


def _tokenize(pieces: Sequence[Piece], tokenizer: Tokenizer, *, train_on_prompt: bool) -> Example:
    encoded = [tokenizer.encode(text) for text, _ in pieces]
    tokens = [token for piece in encoded for token in piece]
    labels = [
        train_on_prompt or trained for piece, (_, trained) in zip(encoded, pieces, strict=True) for _ in piece
    ]
    if not encoded[-1]:
        raise DataError("has no text to train on: the completion is empty")
    if tokenizer.eos_id is not None and tokenizer.eos_id not in encoded[-1]:
        tokens, labels = [*tokens, tokenizer.eos_id], [*labels, True]
    if tokenizer.bos_id is not None and tokens[0] != tokenizer.bos_id:
        tokens, labels = [tokenizer.bos_id, *tokens], [False, *labels]
    labels[0] = False
    if not any(labels):
        raise DataError("is a single token, with nothing before it to predict it from")
    return Example(np.array(tokens, np.int32), np.array(labels, np.bool_))


def _split(example: Example, seq_tokens: int) -> list[Example]:
    # Neighbours share one token, the last of one and the first of the next: each label is trained on once.
    starts = range(0, len(example.tokens) - 1, seq_tokens)
    pieces = [_part(example, slice(at, at + seq_tokens + 1)) for at in starts]
    for piece in pieces:
        piece.labels[0] = False
    return pieces


def _truncate(example: Example, seq_tokens: int) -> Example:
    excess = len(example.tokens) - (seq_tokens + 1)
    first_label = int(np.argmax(example.labels))
    cut = min(excess, first_label - 1)  # the first token stays, bos where there is one
    keep = np.ones(len(example.tokens), np.bool_)
    keep[1 : cut + 1] = False
    return _part(example, np.flatnonzero(keep)[: seq_tokens + 1])


def _part(example: Example, where: slice | NDArray[np.intp]) -> Example:
    return Example(example.tokens[where].copy(), example.labels[where].copy())


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(len(example.tokens).to_bytes(8, "little"))
        digest.update(example.tokens.tobytes() + example.labels.tobytes())
    return digest.hexdigest()


def _report(path: str, faults: Sequence[tuple[int, str]], num_lines: int) -> str:
    reasons = "; ".join(f"line {number}: {reason}" for number, reason in faults[:MAX_REASONS])
    others = [str(number) for number, _ in faults[MAX_REASONS : MAX_REASONS + MAX_NUMBERS]]
    further = f"; also lines {', '.join(others)}" if others else ""
    more = len(faults) - MAX_REASONS - len(others)
    end = f" and {more} more" if more > 0 else ""
    count = f"{len(faults)} of {num_lines} lines cannot be used"
    return f"{path}: {count}: {reasons}{further}{end}; nothing was trained on"
