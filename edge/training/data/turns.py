"""Where in a chat template's text the assistant speaks.

What is trained on of a turn is what the model has to write when it is asked: all that follows the prompt of
generation, up to the end of the turn. Templates are programs, and there are three kinds:

- most write on: a longer conversation begins with the text of the shorter one, and one with a prompt of
  generation begins like one with the answer. Then all turns are labelled in one text;
- some have a prompt of generation that the answer's text does not begin with (DeepSeek-R1 adds `<think>`, and
  leaves it out of answers). Then an answer begins where its thoughts do, or its content;
- some write earlier turns in another way than the last one (Qwen3 keeps the thoughts of the last alone, Phi-3
  ends every text with its end token, Mistral shows tools before the last question). Then each turn is an
  example of its own, with what would stand before it when it is asked for, and is trained on once.

What a template leaves out in silence (tool calls in one that knows no tools) is an error: the model would
learn to say nothing.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from edge.backends.chat import REASONING
from edge.backends.contract import Tokenizer
from edge.errors import DataError
from edge.training.data.conversations import Conversation, Turn
from edge.training.data.faults import Unusable

Piece = tuple[str, bool]  # text, and whether it is trained on
THINK = re.compile(r"<think>\s*")
MARK = "\ue000tunefleet\ue001"  # of the private use area: in no template, and nothing trims it


class _Answer(NamedTuple):
    text: str  # of the conversation up to this turn
    start: int  # where in it the turn's own part begins


def mark_turns(conversation: Conversation, tokenizer: Tokenizer) -> list[list[Piece]]:
    """Cuts a conversation into the pieces of its examples; what follows its last answer is left out.

    Raises:
        Unusable: The base model has no chat template, or its template does not take the conversation.
    """
    turns = conversation.turns
    ends = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    try:
        answers = [_answer(conversation, end, tokenizer) for end in ends]
    except DataError as error:
        raise Unusable(f"cannot be rendered: {error}") from error
    for end, answer in zip(ends, answers, strict=True):
        _check_said(turns[end], answer.text[answer.start :])
    if _is_one_text(answers):
        return [_chain(answers)]
    return [[(text[:start], False), (text[start:], True)] for text, start in answers]


def _is_one_text(answers: Sequence[_Answer]) -> bool:
    whole = answers[-1].text
    ends = [0, *(len(answer.text) for answer in answers)]
    return all(
        whole.startswith(answer.text) and end <= answer.start
        for answer, end in zip(answers, ends[:-1], strict=True)
    )


def _chain(answers: Sequence[_Answer]) -> list[Piece]:
    pieces: list[Piece] = []
    done = 0
    for text, start in answers:
        pieces += [(text[done:start], False), (text[start:], True)]
        done = len(text)
    return pieces


def _answer(conversation: Conversation, end: int, tokenizer: Tokenizer) -> _Answer:
    turns, tools = conversation
    after = tokenizer.render(turns[: end + 1], tools=tools, add_generation_prompt=False)
    if end == 0:  # an answer without a question; many templates do not render nothing
        return _Answer(after, _content_start(turns[:1], after, conversation, tokenizer))
    before = tokenizer.render(turns[:end], tools=tools, add_generation_prompt=True)
    if after.startswith(before):
        return _Answer(after, len(before))
    return _Answer(after, _content_start(turns[: end + 1], after, conversation, tokenizer))


def _content_start(
    turns: Sequence[Turn], after: str, conversation: Conversation, tokenizer: Tokenizer
) -> int:
    """Finds where the last turn begins to say something: what stands before is the same whatever it says."""
    for marked in _with_mark(turns[-1]):
        text = tokenizer.render([*turns[:-1], marked], tools=conversation.tools, add_generation_prompt=False)
        head, mark, _ = text.partition(MARK)
        if mark and after.startswith(head):
            return len(head)
    raise DataError("the base model's chat template does not show where the assistant begins")


def _with_mark(turn: Turn) -> Iterator[Turn]:
    """Yields the turn with a mark where its thoughts may begin, and where its content does."""
    content = turn.get("content", "")
    for name in REASONING:
        if name in turn:
            yield {**turn, name: f"{MARK}{turn[name]}"}
    yield {**turn, "content": MARK + content}
    if THINK.search(content):
        yield {**turn, "content": THINK.sub(rf"\g<0>{MARK}", content, count=1)}
    yield {**turn, "content": MARK}


def _check_said(turn: Turn, text: str) -> None:
    """Refuses a turn of which the template left out the tool calls, or the end of the content.

    Raises:
        Unusable: It did.
    """
    for call in turn.get("tool_calls", ()):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or name not in text:
            raise Unusable("have tool calls that the base model's chat template leaves out")
    said = turn.get("content", "").rpartition("</think>")[2].strip()
    if not turn.get("tool_calls") and said.rpartition("\n")[2] not in text:
        raise Unusable("have an assistant turn that the base model's chat template leaves out")
