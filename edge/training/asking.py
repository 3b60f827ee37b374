"""How a model is asked: the same tokens before an answer as in training, and the tokens that end it.

Conversations are trained on as the base's chat template writes them, an instruction of Alpaca's form in
Alpaca's prompt; prompt and completion are joined as they stand. So there are three ways to ask.
"""

from collections.abc import Iterator
from contextlib import suppress

from edge.backends.contract import Tokenizer
from edge.errors import DataError
from edge.training.data.dataset import encode_prompt
from edge.training.data.forms import alpaca_prompt
from edge.training.requests import Generation

_ANSWER = "tunefleet"  # any text that no template contains


def encode_questions(request: Generation, tokenizer: Tokenizer, context_tokens: int) -> list[list[int]]:
    """Encodes prompts as tokens to generate from.

    Raises:
        DataError: A prompt is empty, or leaves no room in the model's context: each with its numbers; or the
            base model has no chat template, or one that takes no system message.
    """
    questions = [_encode(prompt, request, tokenizer) for prompt in request.prompts]
    faults = list(_faults(questions, context_tokens, has_template=request.asking != "plain"))
    if faults:
        raise DataError("; ".join(faults))
    return questions


def end_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Finds the tokens that end an answer: the model's own, and what its chat template puts behind one."""
    return tokenizer.end_ids | _turn_end(tokenizer)


def _encode(prompt: str, request: Generation, tokenizer: Tokenizer) -> list[int]:
    if request.asking != "chat":
        return encode_prompt(tokenizer, alpaca_prompt(prompt) if request.asking == "alpaca" else prompt)
    turns = [] if request.system is None else [{"role": "system", "content": request.system}]
    turns.append({"role": "user", "content": prompt})
    return encode_prompt(tokenizer, tokenizer.render(turns, add_generation_prompt=True))


def _faults(questions: list[list[int]], context_tokens: int, *, has_template: bool) -> Iterator[str]:
    counted = ", those of its template counted" if has_template else ""
    for number, tokens in enumerate(questions, 1):
        which = f"prompt {number} of {len(questions)}" if len(questions) > 1 else "the prompt"
        if not tokens:
            yield f"{which} is empty"
        if len(tokens) >= context_tokens:
            yield (
                f"{which} has {len(tokens)} tokens{counted}, and the model's context holds {context_tokens}, "
                "its answer included; shorten it"
            )


def _turn_end(tokenizer: Tokenizer) -> frozenset[int]:
    # `<|im_end|>`, say: a model may have been trained to end its turns so, and call another token its last.
    if not tokenizer.has_chat_template:
        return frozenset()
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    with suppress(DataError):
        _, found, behind = tokenizer.render(turns, add_generation_prompt=False).rpartition(_ANSWER)
        tokens = tokenizer.encode(behind) if found else []
        if tokens and not tokenizer.decode(tokens[:1]):  # a special token: it is no text
            return frozenset(tokens[:1])
    return frozenset()
