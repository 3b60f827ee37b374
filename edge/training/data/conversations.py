"""Conversations as chat templates take them: a list of turns with roles, from the forms that people have.

ShareGPT's speakers get their roles. A content in parts is joined where all parts are text: a base that reads
text alone has a template for strings. Everything else of a turn (tool calls, names, thoughts) is left as it
is, but for nulls, which tables write into turns that have no such field.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edge.training.data.faults import Unusable, kind_of, shorten

Turn = dict[str, Any]
_ROLES = {  # of ShareGPT's speakers, as its many copies write them
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_SPEAKERS = "human, gpt, system or tool"
_NO_PAYLOAD = frozenset(("role", "content", "name"))


class Conversation(NamedTuple):
    """Turns with the tools that their assistant may call."""

    turns: list[Turn]
    tools: list[Any] | None


def read_messages(messages: Any, column: str) -> list[Turn]:
    """Reads the turns of a row.

    Raises:
        Unusable: They are no turns, or none of them is an assistant's.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise Unusable(f"have {column} that are {kind_of(messages)}, expected a list of turns")
    turns = [_turn(message, column) for message in messages]
    spoken = [turn for turn in turns if turn["role"] == "assistant"]
    if not spoken:
        raise Unusable("have no assistant turn to train on")
    if any(not turn.get("content") and turn.keys() <= _NO_PAYLOAD for turn in spoken):
        raise Unusable("have an empty assistant turn")
    return turns


def read_tools(tools: Any) -> list[Any] | None:
    """Reads the tools of a row, None where it has none.

    Raises:
        Unusable: They are no list of objects.
    """
    if not tools:
        return None
    if isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools):
        return tools
    raise Unusable("have tools that are no list of objects")


def _turn(message: Any, column: str) -> Turn:
    if not isinstance(message, Mapping):
        raise Unusable(f"have {column} with a turn that is {kind_of(message)}, expected an object")
    turn = {name: value for name, value in message.items() if value is not None}
    if "role" not in turn and "from" in turn:
        turn = _of_sharegpt(turn)
    if not isinstance(turn.get("role"), str):
        raise Unusable(f"have {column} with a turn without role and content")
    if not isinstance(turn.get("tool_calls", []), list):
        raise Unusable("have tool_calls that are no list")
    if "content" in turn:
        turn["content"] = _text(turn["content"])
    elif turn.keys() <= _NO_PAYLOAD and turn["role"] != "assistant":
        raise Unusable(f"have {column} with a turn without role and content")
    return turn


def _of_sharegpt(turn: Turn) -> Turn:
    speaker = turn.pop("from")
    role = _ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise Unusable(f"have the speaker {shorten(str(speaker))!r}, expected {_SPEAKERS}")
    return {"role": role, "content": turn.pop("value", ""), **turn}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Unusable(f"have a content that is {kind_of(content)}, expected a string or parts of text")
    return "".join(_part(part) for part in content)


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if isinstance(text, str) and (isinstance(part, str) or part.get("type", "text") == "text"):
        return text
    kind = f"of type {shorten(str(part.get('type')))!r}" if isinstance(part, Mapping) else kind_of(part)
    raise Unusable(f"have a content with a part that is {kind}, expected text")
