"""A Hugging Face tokenizer behind the contract; its library is imported by the backend that loads it."""

from collections.abc import Mapping, Sequence
from typing import Any

from edge.errors import DataError


class HubTokenizer:
    """Any tokenizer of the transformers library, loaded already."""

    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded
        self.bos_id: int | None = loaded.bos_token_id
        self.eos_id: int | None = loaded.eos_token_id

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        tokens: list[int] = self._loaded.encode(text, add_special_tokens=False, verbose=False)
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        text: str = self._loaded.decode(list(tokens), skip_special_tokens=True)
        return text

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """See `Tokenizer.render`."""
        if not self._loaded.chat_template:
            raise DataError("the base model has no chat template; use prompt and completion, or text")
        text: str = self._loaded.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return text
