"""What a row says, by the columns that it has; a column that is null counts as not there.

| form | columns | trained on |
|---|---|---|
| named | those of `--prompt-column` and `--completion-column` | the completion |
| messages | `messages` (role and content), perhaps `tools` | what the assistant says |
| ShareGPT | `conversations` (from and value, or role and content) | what the assistant says |
| prompt and completion | `prompt`, `completion` | the completion |
| Alpaca | `instruction`, `output`, perhaps `input` | the output |
| text | `text` | everything |

The first that fits counts: chat sets often keep the first question as `prompt`, Alpaca's own has all of it
once more as `text`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from edge.training.data.conversations import Conversation, read_messages, read_tools
from edge.training.data.faults import Unusable, kind_of, shorten
from edge.training.data.source import DataSource

Asking = Literal["plain", "chat", "alpaca"]  # the prompt as it stands, in the chat template, in Alpaca's
MESSAGES, SHAREGPT = "messages", "ShareGPT conversations"
ALPACA = "Alpaca instruction and output"
COLUMNS = frozenset(
    ("messages", "conversations", "tools", "prompt", "completion", "instruction", "input", "output", "text")
)
MAX_NAMED = 8  # columns in a message
_BY_NAME = "name others by --prompt-column and --completion-column"
_EXPECTED = (
    f"expected text, prompt and completion, messages, conversations, or instruction and output; {_BY_NAME}"
)
# Of Stanford Alpaca, https://github.com/tatsu-lab/stanford_alpaca, with the line break of its data set.
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


class Text(NamedTuple):
    """A text, all of which is trained on."""

    text: str


class Pair(NamedTuple):
    """A prompt and its completion, which is trained on."""

    prompt: str
    completion: str


class Content(NamedTuple):
    """What a row says, and the name of the form in which it says so."""

    form: str
    value: Text | Pair | Conversation


def wanted_columns(source: DataSource) -> frozenset[str]:
    """Names all columns that a row of `source` may be read from."""
    named = filter(None, (source.prompt_column, source.completion_column))
    return COLUMNS.union(named)


def recognise(columns: Mapping[str, Any], source: DataSource) -> Content:
    """Finds out what a row says.

    Raises:
        Unusable: It has none that can be trained on, and why.
    """
    row = {name: value for name, value in columns.items() if value is not None}
    if source.prompt_column is not None or source.completion_column is not None:
        names = (source.prompt_column or "prompt", source.completion_column or "completion")
        return Content(f"columns {names[0]} and {names[1]}", _completion(row, *names))
    if "messages" in row:
        return Content(MESSAGES, _conversation(row, "messages"))
    if "conversations" in row:
        return Content(SHAREGPT, _conversation(row, "conversations"))
    if "prompt" in row and "completion" in row:
        return Content("prompt and completion", _completion(row, "prompt", "completion"))
    if "instruction" in row and "output" in row:
        return Content(ALPACA, _alpaca(row))
    if "text" in row:
        return Content("text", Text(_trained(row, "text")))
    raise _formless(row, list(columns))


def asking_of(forms: Collection[str]) -> Asking:
    """Tells how a model is to be asked that was trained on rows of these forms."""
    if not {MESSAGES, SHAREGPT}.isdisjoint(forms):
        return "chat"
    return "alpaca" if set(forms) == {ALPACA} else "plain"


def alpaca_prompt(instruction: str, given: str = "") -> str:
    """Writes what stands before the answer to an instruction, with an input or without."""
    template = _ALPACA_INPUT if given.strip() else _ALPACA
    return template.format(instruction=instruction, input=given)


def _conversation(row: Mapping[str, Any], column: str) -> Conversation:
    return Conversation(read_messages(row[column], column), read_tools(row.get("tools")))


def _completion(row: Mapping[str, Any], prompt: str, completion: str) -> Pair:
    if prompt not in row or completion not in row:
        raise Unusable(_lack(row, (prompt, completion)))
    return Pair(_string(row, prompt), _trained(row, completion))


def _alpaca(row: Mapping[str, Any]) -> Pair:
    given = _string(row, "input") if "input" in row else ""
    return Pair(alpaca_prompt(_string(row, "instruction"), given), _trained(row, "output"))


def _formless(row: Mapping[str, Any], names: Sequence[str]) -> Unusable:
    if not names:
        return Unusable("have no columns", _EXPECTED)
    named = ", ".join(shorten(name, 24) for name in names[:MAX_NAMED])
    named += ", …" if len(names) > MAX_NAMED else ""
    for pair in (("prompt", "completion"), ("instruction", "output")):
        if any(name in row for name in pair):
            hint = "" if COLUMNS.issuperset(names) else f"the columns are {named}; {_BY_NAME}"
            return Unusable(_lack(row, pair), hint)
    return Unusable(f"have columns of no known form ({named})", _EXPECTED)


def _lack(row: Mapping[str, Any], names: Sequence[str]) -> str:
    absent = [f'"{shorten(name)}"' for name in names if name not in row]
    return f"lack {' and '.join(absent)}"


def _trained(row: Mapping[str, Any], column: str) -> str:
    text = _string(row, column)
    if not text:
        raise Unusable("have an empty text" if column == "text" else f"have an empty {shorten(column)}")
    return text


def _string(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise Unusable(f"have a {shorten(column)} that is {kind_of(value)}, expected a string")
    check_text(value)
    return value


def check_text(text: str) -> None:
    """Refuses what no tokenizer takes.

    Raises:
        Unusable: It holds halves of characters, which UTF-8 cannot hold.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Unusable("are not UTF-8") from error
