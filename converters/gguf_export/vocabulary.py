"""What a GGUF file says of its tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's llama_token_type

Prefix = Literal["none", "always", "unless-space"]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in llama.cpp's words.

    Of prefixes llama.cpp knows `always` and `none`; transformers' newer Llama tokenizers do without a space
    where the text begins with one.
    """

    model: Literal["gpt2", "llama"]  # llama.cpp's kind of tokenizer
    pre: str  # llama.cpp's name for how words are cut
    tokens: Sequence[str]  # in order of ids; of byte-level BPE, each byte as one printable character
    types: Sequence[int]  # one of the constants above for each token
    special: Mapping[str, int]  # ids of bos, eos, unk and pad, those that the tokenizer has
    adds_bos: bool
    adds_eos: bool
    prefix: Prefix = "none"  # when a space is put before a text
    merges: Sequence[str] = ()  # pairs, highest rank first; byte-level BPE only
    scores: Sequence[float] = ()  # what a merge into each token is worth; BPE over characters only
    chat_template: str | None = None
    strips_like_phi3: bool = False  # special tokens take the spaces behind them, but for three plain ones
