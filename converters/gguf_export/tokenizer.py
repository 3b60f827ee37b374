"""A Hugging Face tokenizer in a GGUF file's words, so that llama.cpp cuts texts as transformers does.

llama.cpp has no tokenizer language, only a list of known kinds; what it cannot do exactly is refused. Two
kinds are enough for the models that `converters.gguf_export.model` writes: `byte_level` and
`character_level`. Texts must be in NFC where tokenizer.json normalises to it: llama.cpp does not.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from converters.errors import BaseModelError
from converters.gguf_export.byte_level import find_byte_level_faults, is_byte_level, name_cut
from converters.gguf_export.character_level import find_character_level_faults, find_prefix, score_tokens
from converters.gguf_export.tokenizer_files import SPACE, TokenizerFiles, read_tokenizer_files
from converters.gguf_export.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
)

_PHI3_PLAIN = ("<unk>", "<s>", "<|endoftext|>")  # which take no spaces


class _Token(NamedTuple):
    """One token as llama.cpp wants it."""

    number: int
    text: str
    type: int


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """Reads the tokenizer of the model in `folder`, whose embedding has `vocab_size` rows.

    Raises:
        BaseModelError: No tokenizer.json, or one that llama.cpp's tokenizers cannot follow to the letter,
            with everything in it that they cannot do.
    """
    files, where = read_tokenizer_files(folder), folder / "tokenizer.json"
    if files.model.get("type") != "BPE":
        raise BaseModelError(
            f"{where}: is a {files.model.get('type')} tokenizer, expected BPE: no other "
            "has an exact counterpart in llama.cpp"
        )
    is_bytes = is_byte_level(files)
    faults = [
        *_token_faults(files, vocab_size),
        *(find_byte_level_faults if is_bytes else find_character_level_faults)(files),
        *_space_faults(files),
    ]
    if faults:
        raise BaseModelError.of(f"{where}: cannot be put in llama.cpp's words", faults)
    texts, types = _fill_rows(files, vocab_size)
    return Vocabulary(
        model="gpt2" if is_bytes else "llama",
        pre=(name_cut(files) or "") if is_bytes else "default",
        tokens=texts,
        types=types,
        special=files.special,
        adds_bos=files.adds("bos"),
        adds_eos=files.adds("eos"),
        prefix="none" if is_bytes else find_prefix(files) or "none",
        merges=[f"{first} {second}" for first, second in files.merges] if is_bytes else [],
        scores=[] if is_bytes else score_tokens(files, texts),
        chat_template=files.chat_template,
        strips_like_phi3=bool(_space_takers(files)),
    )


def _tokens(files: TokenizerFiles) -> Iterator[_Token]:
    """Yields all tokens; of two with one id the latter counts."""
    unknown, has_bytes = files.model.get("unk_token"), files.model.get("byte_fallback")
    for text, number in files.vocab.items():
        is_byte = has_bytes and len(text) == 6 and text[:3] == "<0x" and text[5] == ">"
        yield _Token(int(number), text, UNKNOWN if text == unknown else BYTE if is_byte else NORMAL)
    for token in files.added:
        # llama.cpp looks for plain ones in the text as it came, before spaces become "▁".
        text = token["content"] if token.get("special") else token["content"].replace(SPACE, " ")
        kind = CONTROL if token.get("special") else USER_DEFINED
        yield _Token(int(token["id"]), text, UNKNOWN if text == unknown else kind)


def _fill_rows(files: TokenizerFiles, vocab_size: int) -> tuple[list[str], list[int]]:
    """Lists text and type of every row of the embedding; rows without a token are called [PAD…]."""
    rows = {token.number: token for token in _tokens(files)}
    found = [rows.get(number, _Token(number, f"[PAD{number}]", UNUSED)) for number in range(vocab_size)]
    return [token.text for token in found], [token.type for token in found]


def _token_faults(files: TokenizerFiles, vocab_size: int) -> Iterator[str]:
    beyond = [token.text for token in _tokens(files) if token.number >= vocab_size]
    if beyond:
        yield f"{len(beyond)} tokens, such as {beyond[0]!r}, have no row among {vocab_size}"
    texts, _ = _fill_rows(files, vocab_size)
    if len(set(texts)) != len(texts):  # llama.cpp aborts the process
        yield "two ids have the same text"


def _space_takers(files: TokenizerFiles) -> set[str]:
    """Finds the special tokens that take spaces around them."""
    habits = ("rstrip", "lstrip", "single_word")
    return {token["content"] for token in files.added if any(token.get(habit) for habit in habits)}


def _space_faults(files: TokenizerFiles) -> Iterator[str]:
    """Finds special tokens that take spaces in a way that llama.cpp lacks: it knows Phi 3's alone."""
    takers, all_added = _space_takers(files), {token["content"] for token in files.added}
    takes_before = any(token.get("lstrip") or token.get("single_word") for token in files.added)
    is_phi3 = takers == all_added.difference(_PHI3_PLAIN) and {"</s>", *_PHI3_PLAIN} <= all_added
    if takers and (takes_before or not is_phi3):
        yield f"special tokens that take spaces around them, such as {min(takers)}"
