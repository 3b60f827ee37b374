"""The table of architectures: what they are called, and in what they differ.

A new architecture is one entry in `ARCHITECTURES`. Three things depend on it: adapters and base models in
GGUF are translated for every architecture here; a GGUF file is written, and a quantised copy proved, only
where llama.cpp's graph computes the same to the letter (`exact`); and models whose graphs are one have one
fingerprint.

Rows of q and k: where llama.cpp rotates pairs of neighbouring values (RoPE "norm"), its converter moves them
so that the two halves of each head, which Hugging Face rotates against each other, come to lie in turns.

Source: llama.cpp, conversion/*.py (LlamaModel.permute) and llama_model_rope_type in src/llama-model.cpp.
"""

from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray


class Exact(Struct, frozen=True):
    """What a config may ask for so that llama.cpp computes the same."""

    activation: str = "silu"  # of the feed-forward layers
    scalings: tuple[str, ...] = ("default", "linear")  # kinds of RoPE scaling
    has_bias: bool = False  # attention may have biases
    has_own_head_dim: bool = False  # heads need not add up to the hidden size
    has_partial_rotary: bool = False  # RoPE may turn a part of each head
    ignores_window: bool = False  # llama.cpp lets it see everything: the same up to the window's width
    has_sliding_layers: bool = False  # some layers see a window, by a RoPE of their own
    writes_tied_head: bool = False  # llama.cpp wants a head of its own, which is then the embedding again
    head_dim: int | None = None  # where config.json has none; None: hidden size over heads
    rope_theta: float = 1e4  # where config.json has none


class Architecture(Struct, frozen=True):
    """One architecture."""

    model_type: str  # what Hugging Face's config.json calls it
    gguf_name: str = ""  # what llama.cpp calls it, if otherwise
    turns_rows: bool = False  # llama.cpp has the rows of q and k of each head in turns
    shifts_norms: bool = False  # llama.cpp stores the weights of its norms plus one
    exact: Exact | None = None  # None where llama.cpp's graph is not known to compute the same to the letter

    @property
    def name(self) -> str:
        """What llama.cpp calls it."""
        return self.gguf_name or self.model_type


_LLAMA = Exact(scalings=("default", "linear", "llama3"), has_bias=True, has_own_head_dim=True)
_GEMMA3 = Exact(
    activation="gelu_pytorch_tanh",
    has_own_head_dim=True,
    has_sliding_layers=True,
    head_dim=256,
    rope_theta=1e6,
)
ARCHITECTURES = (
    Architecture("llama", turns_rows=True, exact=_LLAMA),
    Architecture("mistral", "llama", turns_rows=True, exact=replace(_LLAMA, ignores_window=True)),
    Architecture("granite", turns_rows=True),
    Architecture("smollm3", turns_rows=True),
    Architecture("arcee", turns_rows=True),
    Architecture("minicpm", turns_rows=True),
    Architecture("qwen2", exact=Exact(has_bias=True)),
    Architecture("qwen3", exact=Exact(has_own_head_dim=True)),
    Architecture("olmo2", exact=Exact(writes_tied_head=True)),
    Architecture("phi3", exact=Exact(scalings=("default",), has_partial_rotary=True, ignores_window=True)),
    Architecture("gemma", shifts_norms=True),
    Architecture("gemma2", shifts_norms=True),
    Architecture("gemma3_text", "gemma3", shifts_norms=True, exact=_GEMMA3),
    Architecture("seed_oss"),
    Architecture("exaone4"),
)


class Rotated(NamedTuple):
    """A linear layer whose output RoPE rotates, head by head."""

    tensor: str  # llama.cpp's name for it
    config_key: str  # number of heads in config.json
    gguf_key: str  # and in a GGUF file, after the architecture's name


ROTATED = (
    Rotated("attn_q", "num_attention_heads", "attention.head_count"),
    Rotated("attn_k", "num_key_value_heads", "attention.head_count_kv"),
)


def find_model_type(model_type: object) -> Architecture | None:
    """Finds what config.json calls `model_type`; None where it is not known here."""
    return next((one for one in ARCHITECTURES if one.model_type == model_type), None)


def find_gguf(name: object) -> Architecture | None:
    """Finds what llama.cpp calls `name`, the first of several; None where it is not known here."""
    return next((one for one in ARCHITECTURES if one.name == name), None)


def find_exact(model_type: object) -> Exact | None:
    """Finds what llama.cpp computes to the letter of what config.json calls `model_type`."""
    known = find_model_type(model_type)
    return known.exact if known else None


def graph_of(model_type: Any) -> Any:
    """Returns the `model_type` of the first architecture with the same graph: `mistral` is a `llama`."""
    known = find_model_type(model_type)
    graph = find_gguf(known.name) if known else None
    return graph.model_type if graph else model_type


def file_order(num_rows: int, num_heads: int) -> NDArray[np.intp]:
    """Returns, for each row as llama.cpp stores it, the index of the same row in Hugging Face's order."""
    halves = np.arange(num_rows).reshape(num_heads, 2, num_rows // num_heads // 2)
    return halves.swapaxes(1, 2).ravel()


def hub_order(num_rows: int, num_heads: int) -> NDArray[np.intp]:
    """Returns, for each row in Hugging Face's order, the index of the same row as llama.cpp stores it."""
    turns = np.arange(num_rows).reshape(num_heads, num_rows // num_heads // 2, 2)
    return turns.swapaxes(1, 2).ravel()
