"""The tokenizer that stands in a GGUF file, by llama.cpp's own code, with the ids that transformers gives.

Where the two differ: llama.cpp names a beginning-of-text token even for a model that has none, stops the
process at a character that the vocabulary cannot spell, and puts a space before a text that has one already.
"""

import ctypes
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from edge.backends.chat import ChatTemplate
from edge.backends.llama_cpp.context import Model
from edge.errors import DataError

SPACE = "\u2581"  # how a SentencePiece vocabulary spells it
PREFIX = "tunefleet.tokenizer.prefix"  # written by converters.gguf_export.model


def load_tokenizer(base: Path) -> "GgufTokenizer":
    """Loads the tokenizer of a GGUF file, and nothing else of it.

    Raises:
        BaseModelError: llama.cpp cannot load the file, with its own words.
    """
    return GgufTokenizer(Model(base, has_weights=False))


class GgufTokenizer:
    """See `Tokenizer`."""

    def __init__(self, model: Model) -> None:
        self._model, self._vocab, self._api = model, model.vocab, model.api
        self.bos_id = self._special("bos", self._api.llama_vocab_bos(self._vocab))
        self.eos_id = self._special("eos", self._api.llama_vocab_eos(self._vocab))

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """See `Tokenizer.end_ids`; llama.cpp knows them by the file's metadata and by their texts."""
        vocab, tokens = self._vocab, range(self._model.vocab_size)
        return frozenset(token for token in tokens if self._api.llama_vocab_is_eog(vocab, token))

    @property
    def has_chat_template(self) -> bool:
        """See `Tokenizer.has_chat_template`."""
        return self._chat is not None

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`; special tokens that stand in the text are recognised."""
        if self._model.text_of(PREFIX) == "unless-space":
            text = text.removeprefix(" ")
        if self._alphabet is not None:
            text = "".join(letter for letter in text if letter.replace(" ", SPACE) in self._alphabet)
        raw = text.encode()
        room = len(raw) + 2
        tokens = (self._api.llama_token * room)()
        count = self._api.llama_tokenize(self._vocab, raw, len(raw), tokens, room, False, True)
        return list(tokens[: max(count, 0)])

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        if self._api.llama_vocab_type(self._vocab) == self._api.LLAMA_VOCAB_TYPE_BPE:
            # llama.cpp's own way takes spaces before punctuation away for some models.
            return b"".join(map(self._piece, tokens)).decode(errors="replace")
        held = (self._api.llama_token * len(tokens))(*tokens)
        room = 16 * len(tokens) + 16
        while True:
            text = ctypes.create_string_buffer(room)
            count = self._api.llama_detokenize(self._vocab, held, len(tokens), text, room, True, False)
            if count >= 0:
                return text.raw[:count].decode(errors="replace")
            room = -count

    def piece(self, token: int) -> str:
        """See `Tokenizer.piece`."""
        return self._piece(token, is_special_shown=True).decode(errors="replace")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool,
    ) -> str:
        """See `Tokenizer.render`."""
        if self._chat is None:
            raise DataError("the base model has no chat template; use prompt and completion, or text")
        return self._chat.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)

    @cached_property
    def _chat(self) -> ChatTemplate | None:
        template = self._api.llama_model_chat_template(self._model.pointer, None)
        if not template:
            return None
        special = {"bos_token": self._text(self.bos_id), "eos_token": self._text(self.eos_id)}
        return ChatTemplate(template.decode(errors="replace"), special)

    @cached_property
    def _alphabet(self) -> frozenset[str] | None:
        """The characters that can be spelt, of a SentencePiece vocabulary without bytes; None is all."""
        if self._api.llama_vocab_type(self._vocab) != self._api.LLAMA_VOCAB_TYPE_SPM:
            return None
        tokens = range(self._model.vocab_size)
        if any(
            self._api.llama_vocab_get_attr(self._vocab, token) & self._api.LLAMA_TOKEN_ATTR_BYTE
            for token in tokens
        ):
            return None
        return frozenset("".join(map(self._text, tokens)))

    def _special(self, name: str, token: int) -> int | None:
        # llama.cpp's converter notes a beginning-of-text token even where transformers' tokenizer has none.
        is_there = self._model.text_of(f"tokenizer.ggml.{name}_token_id") is not None
        is_added = self._model.text_of(f"tokenizer.ggml.add_{name}_token") != "false"
        is_ours = self._model.text_of(PREFIX) is not None
        return token if is_there and token >= 0 and (is_added or is_ours or name == "eos") else None

    def _piece(self, token: int, is_special_shown: bool = False) -> bytes:
        text = ctypes.create_string_buffer(256)
        count = self._api.llama_token_to_piece(self._vocab, token, text, len(text), 0, is_special_shown)
        if count < 0:
            text = ctypes.create_string_buffer(-count)
            count = self._api.llama_token_to_piece(self._vocab, token, text, len(text), 0, is_special_shown)
        return text.raw[:count]

    def _text(self, token: int | None) -> str:
        if token is None:
            return ""
        text: bytes = self._api.llama_vocab_get_text(self._vocab, token)
        return text.decode(errors="replace")
