"""A Hugging Face tokenizer behind the contract; folders of transformers and of MLX have one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from converters.bases.config import read_json
from converters.errors import BaseModelError
from edge.backends.chat import ChatTemplate
from edge.errors import DataError, MissingExtra


def load_hub_tokenizer(base: Path) -> "HubTokenizer":
    """Loads the tokenizer of a folder, and nothing else of it.

    Raises:
        MissingExtra: transformers is not installed.
        BaseModelError: The folder has no tokenizer that transformers can load, and why.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtra(f"{base} is a folder of Hugging Face's kind, and transformers", "torch") from error
    try:
        return HubTokenizer(AutoTokenizer.from_pretrained(base, local_files_only=True))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BaseModelError(f"{base}: transformers cannot load its tokenizer: {reason}") from error


class HubTokenizer:
    """Any tokenizer of the transformers library, loaded already."""

    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded
        self._chats: dict[str, ChatTemplate] = {}
        self.bos_id: int | None = loaded.bos_token_id
        self.eos_id: int | None = loaded.eos_token_id

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """See `Tokenizer.end_ids`; a chat model names several in its generation_config.json."""
        return frozenset(_named_ends(Path(self._loaded.name_or_path))) | (
            frozenset() if self.eos_id is None else {self.eos_id}
        )

    @property
    def has_chat_template(self) -> bool:
        """See `Tokenizer.has_chat_template`."""
        return bool(self._loaded.chat_template)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        tokens: list[int] = self._loaded.encode(text, add_special_tokens=False, verbose=False)
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        text: str = self._loaded.decode(list(tokens), skip_special_tokens=True)
        return text

    def piece(self, token: int) -> str:
        """See `Tokenizer.piece`."""
        # Some decoders drop the space before the first token of a text, so it is looked at as the second.
        once, twice = (self._loaded.decode(tokens) for tokens in ([token], [token, token]))
        text: str = twice[len(once) :]
        return text

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool,
    ) -> str:
        """See `Tokenizer.render`."""
        if not self.has_chat_template:
            raise DataError("the base model has no chat template; use prompt and completion, or text")
        try:
            source = self._loaded.get_chat_template(None, tools)  # some models have another one for tools
        except ValueError as error:
            raise DataError(f"the base model's chat template cannot be used: {error}") from error
        if source not in self._chats:
            self._chats[source] = ChatTemplate(source, self._loaded.special_tokens_map)
        return self._chats[source].render(messages, tools=tools, add_generation_prompt=add_generation_prompt)


def _named_ends(folder: Path) -> Iterator[int]:
    """Ends of a text by the model's own files: one number, or a list of them."""
    for name in ("generation_config.json", "config.json"):
        with suppress(BaseModelError):
            found = read_json(folder / name, "the end of a text").get("eos_token_id")
            yield from (one for one in (found if isinstance(found, list) else [found]) if type(one) is int)
