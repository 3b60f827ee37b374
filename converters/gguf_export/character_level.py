"""BPE over characters with "▁" for spaces (llama.cpp's `llama`, after SentencePiece).

llama.cpp merges any two neighbours whose union is a token, in order of the union's score. With minus the rank
of its first merge as a token's score that is what tokenizer.json asks for, if its merges are all such pairs;
where some are missing (a tokenizer that was trained as BPE), both ways are tried on test sentences.
"""

import json
from collections.abc import Iterator, Mapping, Sequence

from converters.gguf_export.bpe_order import same_tokens
from converters.gguf_export.tokenizer_files import SPACE, Step, TokenizerFiles
from converters.gguf_export.vocabulary import Prefix

_LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")


def find_prefix(files: TokenizerFiles) -> Prefix | None:
    """Tells when a space goes before a text; None where spaces are treated in another way than as "▁"."""
    if files.settings.get("tokenizer_class") in _LLAMA_CLASSES:
        return "none" if files.settings.get("add_prefix_space") is False else "unless-space"
    normalizers, steps = files.normalizers, files.pre_tokenizers
    kinds = [step["type"] for step in normalizers]
    if (
        kinds in (["Replace"], ["Prepend", "Replace"])
        and _marks_spaces(normalizers[-1])
        and _cuts_nothing(steps)
    ):
        if kinds == ["Replace"]:
            return "none"
        return "always" if normalizers[0].get("prepend") == SPACE else None
    if not kinds and [step["type"] for step in steps] == ["Metaspace"] and steps[0].get("split") is False:
        return "none" if steps[0].get("prepend_scheme") == "never" else "unless-space"
    return None


def score_tokens(files: TokenizerFiles, tokens: Sequence[str]) -> list[float]:
    """Returns what a merge into each token is worth."""
    ranks, lowest = _rank_unions(files), len(files.merges)
    return [-float(ranks.get(token, lowest)) for token in tokens]


def find_character_level_faults(files: TokenizerFiles) -> Iterator[str]:
    """Finds what llama.cpp cannot do of it."""
    if find_prefix(files) is None:
        normalizers, steps = (
            json.dumps(some, ensure_ascii=False)[:200] for some in (files.normalizers, files.pre_tokenizers)
        )
        yield f"the normalizer {normalizers} with the pre-tokenizer {steps}"
    if files.model.get("ignore_merges"):
        yield "whole words before merges (ignore_merges)"
    elif not same_tokens(files.vocab, files.merges, _rank_unions(files)):
        yield "its merges give other tokens than merging by scores, on test sentences"


def _rank_unions(files: TokenizerFiles) -> Mapping[str, int]:
    """Returns the rank of each token's first merge."""
    ranks: dict[str, int] = {}
    for number, (first, second) in enumerate(files.merges):
        ranks.setdefault(first + second, number)
    return ranks


def _marks_spaces(step: Step) -> bool:
    return step.get("pattern") == {"String": " "} and step.get("content") == SPACE


def _cuts_nothing(steps: Sequence[Step]) -> bool:
    """Tells whether no word is cut. Gemma's cuts at spaces, of which none are left behind its normalizer."""
    return all(step["type"] == "Split" and step.get("pattern") == {"String": " "} for step in steps)
