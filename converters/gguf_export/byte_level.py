"""Byte-level BPE (llama.cpp's `gpt2`): merges by rank, words cut by a rule that has a name.

The name is chosen here by the pattern that stands in tokenizer.json; llama.cpp's own converter goes by a hash
of known models. Of names for one pattern, that of equal other habits.
"""

import json
from collections.abc import Iterator, Sequence

from converters.gguf_export.tokenizer_files import Step, TokenizerFiles

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + r"\p{N}" + _REST


def is_byte_level(files: TokenizerFiles) -> bool:
    """Tells byte-level BPE from BPE over characters."""
    return any(step["type"] == "ByteLevel" for step in files.pre_tokenizers)


def name_cut(files: TokenizerFiles) -> str | None:
    """Returns llama.cpp's name for the way words are cut; None where it has none."""
    steps, pattern = files.pre_tokenizers, _pattern(files.pre_tokenizers)
    kinds, cuts_by_itself = [step["type"] for step in steps], steps[-1].get("use_regex", True)
    if files.model.get("ignore_merges"):
        return "llama-bpe" if pattern == _LLAMA3 else None
    if not files.merges or (kinds == ["ByteLevel"] and cuts_by_itself):  # without merges every cut does
        return "gpt-2" if files.settings.get("clean_up_tokenization_spaces") else "trillion"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and cuts_by_itself:
        return "smollm"
    return {_LLAMA3: "dbrx", _QWEN2: "qwen2"}.get(pattern)


def find_byte_level_faults(files: TokenizerFiles) -> Iterator[str]:
    """Finds what llama.cpp cannot do of it."""
    steps = files.pre_tokenizers
    if steps[-1].get("add_prefix_space"):
        yield "a space before each text in byte-level BPE"
    if name_cut(files) is None:
        yield f"the pre-tokenizer {json.dumps(steps, ensure_ascii=False)[:300]}"
    yield from (f"the normalizer {step['type']}" for step in files.normalizers if step["type"] != "NFC")
    missing = sum(character not in files.vocab for character in _byte_characters())
    if missing:
        yield f"{missing} of 256 bytes have no token"


def _pattern(steps: Sequence[Step]) -> str:
    """Returns the pattern that alone cuts words; empty where something else does."""
    if [step["type"] for step in steps] != ["Split", "ByteLevel"] or steps[1].get("use_regex", True):
        return ""
    is_isolated = steps[0].get("behavior") == "Isolated"
    return str((steps[0].get("pattern") or {}).get("Regex", "")) if is_isolated else ""


def _byte_characters() -> Iterator[str]:
    """Yields the characters that stand for the 256 bytes (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    yield from map(chr, printable)
    yield from map(chr, range(256, 256 + 256 - len(printable)))
