"""The tokenizer that stands in a GGUF file, by llama.cpp's own code."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from edge.errors import DataError
from edge.training.backends.llama_cpp import native
from edge.training.backends.llama_cpp.native import Model

api = native.api

NO_TOKEN = -1


class GgufTokenizer:
    """See `Tokenizer`."""

    def __init__(self, model: Model) -> None:
        self._model, self._vocab = model, model.vocab
        self.bos_id = _token(api.llama_vocab_bos(self._vocab))
        self.eos_id = _token(api.llama_vocab_eos(self._vocab))

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`; special tokens that stand in the text are recognised."""
        raw = text.encode()
        room = len(raw) + 2
        tokens = (api.llama_token * room)()
        count = api.llama_tokenize(self._vocab, raw, len(raw), tokens, room, False, True)
        return list(tokens[: max(count, 0)])

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        held = (api.llama_token * len(tokens))(*tokens)
        room = 16 * len(tokens) + 16
        while True:
            text = ctypes.create_string_buffer(room)
            count = api.llama_detokenize(self._vocab, held, len(tokens), text, room, True, False)
            if count >= 0:
                return text.raw[:count].decode(errors="replace")
            room = -count

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """See `Tokenizer.render`; the file's template runs in jinja2's sandbox."""
        template = api.llama_model_chat_template(self._model.pointer, None)
        if not template:
            raise DataError("the base model has no chat template; use prompt and completion, or text")
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            text: str = environment.from_string(template.decode()).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                bos_token=self._text(self.bos_id),
                eos_token=self._text(self.eos_id),
            )
            return text
        except TemplateError as error:
            raise DataError(
                f"the base model's chat template does not take these messages: {error}"
            ) from error

    def _text(self, token: int | None) -> str:
        if token is None:
            return ""
        text: bytes = api.llama_vocab_get_text(self._vocab, token)
        return text.decode(errors="replace")


def _token(found: int) -> int | None:
    return None if found == NO_TOKEN else found


def _refuse(message: str) -> Any:
    raise DataError(f"the base model's chat template does not take these messages: {message}")
