"""What a GGUF file says of its tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's llama_token_type

Prefix = Literal["none", "always", "unless-space"]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in llama.cpp's words.

    Attributes:
        model: llama.cpp's kind of tokenizer.
        pre: llama.cpp's name for how words are cut.
        tokens: Texts in order of ids; of byte-level BPE, each byte as one printable character.
        types: One of the constants above for each token.
        special: Ids of bos, eos, unk and pad, those that the tokenizer has.
        adds_bos: bos goes before a text.
        adds_eos: eos goes behind a text.
        prefix: When a space is put before a text. llama.cpp knows `always` and `none`; transformers' newer
            Llama tokenizers do without where the text begins with one.
        merges: Pairs, highest rank first; byte-level BPE only.
        scores: What a merge into each token is worth; BPE over characters only.
        chat_template: In Jinja.
        strips_like_phi3: Special tokens take the spaces behind them, but for three plain ones.
    """

    model: Literal["gpt2", "llama"]
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    special: Mapping[str, int]
    adds_bos: bool
    adds_eos: bool
    prefix: Prefix = "none"
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    chat_template: str | None = None
    strips_like_phi3: bool = False
