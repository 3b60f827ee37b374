"""The tokenizer of a base model alone: what there is to know of data before the weights are loaded."""

import importlib
from pathlib import Path
from typing import cast

import msgspec

from converters.errors import BaseModelError
from converters.files.content import is_folder, is_there, read_content
from converters.files.text import decode_record
from edge.backends import resolve_backend
from edge.backends.contract import Tokenizer
from edge.backends.toy import ByteTokenizer
from edge.backends.transformers import load_hub_tokenizer


def load_tokenizer(base: Path) -> Tokenizer:
    """Loads the tokenizer that every backend has for `base`.

    Raises:
        MissingExtra: The library that reads it is not installed.
        BaseModelError: There is none, and why.
    """
    if _is_gguf(base):
        resolve_backend("llama_cpp", base)
        module = importlib.import_module("edge.backends.llama_cpp.tokenizer")
        return cast(Tokenizer, module.load_tokenizer(base))
    return ByteTokenizer() if is_there(base / "toy.json") else load_hub_tokenizer(base)


class _TextConfig(msgspec.Struct):
    max_position_embeddings: int | None = None


class _Config(_TextConfig):
    text_config: _TextConfig | None = None  # of a model with several towers


def context_tokens(base: Path) -> int | None:
    """Reads the context length of `base` from its header; None where that does not say."""
    if _is_gguf(base):
        from converters.bases.gguf import read_gguf  # only here is the gguf package needed

        return read_gguf(base).max_tokens
    try:
        config = decode_record(read_content(base / "config.json", BaseModelError), _Config, BaseModelError)
    except BaseModelError:
        return None
    return (config.text_config or config).max_position_embeddings


def _is_gguf(base: Path) -> bool:
    return base.suffix == ".gguf" and not is_folder(base)
