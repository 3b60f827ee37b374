"""What llama.cpp calls a model's weights, and which of them it stores with their rows in another order.

The names come from the `gguf` package's map of the file's architecture: of all the names it knows for a
tensor, the one that Hugging Face's own model class uses. The order is llama.cpp's: where it rotates pairs of
neighbouring values (RoPE "norm"), its converter moves the rows of q and k so that the two halves of each
head, which Hugging Face rotates against each other, come to lie in turns.

Source: llama.cpp, conversion/*.py (LlamaModel.permute) and llama_model_rope_type in src/llama-model.cpp.
"""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from converters.errors import BaseModelError

if TYPE_CHECKING:
    from gguf import TensorNameMap

PERMUTED = frozenset({"llama", "granite", "smollm3", "arcee", "minicpm"})
"""Architectures whose q and k have their rows in turns."""

PLAIN = frozenset({"qwen2", "qwen3", "olmo2", "phi3", "gemma", "gemma2", "gemma3", "seed_oss", "exaone4"})
"""Architectures whose rows stand as in Hugging Face's files."""

SHIFTED = frozenset({"gemma", "gemma2", "gemma3"})
"""Architectures whose norm weights are stored plus one."""

RENAMED = {"mistral": "llama", "gemma3_text": "gemma3"}
"""Hugging Face's `model_type` to the architecture, where llama.cpp calls it otherwise."""

_WORDS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "self_attn.qkv_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_norm", "self_attn.k_norm"),
    *("input_layernorm", "post_attention_layernorm"),
    *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
_OUTSIDE = ("model.embed_tokens", "model.norm", "lm_head")
_IN_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,4})\.(.+)\.(weight|bias)")
_IN_MODEL = re.compile(r"model\.layers\.(0|[1-9]\d{0,4})\.(.+)")
_ROTATED = {"attn_q": "head_count", "attn_k": "head_count_kv"}


def count_blocks(tensors: Iterable[str]) -> int:
    """Transformer blocks that the names of a file's tensors tell of."""
    found = (_IN_BLOCK.fullmatch(name) for name in tensors)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def hub_names(architecture: str, tensors: Iterable[str]) -> dict[str, str]:
    """Hugging Face's name of each tensor that has one: `output.weight` to `lm_head.weight`.

    The word for a fused gate and up projection is not told from that for an up projection here.
    """
    words = dict(_words(architecture))
    found = {}
    for name in tensors:
        if match := _IN_BLOCK.fullmatch(name):
            word, prefix, kind = words.get(f"blk.0.{match[2]}"), f"model.layers.{match[1]}.", match[3]
        else:
            stem, _, kind = name.rpartition(".")
            word, prefix = words.get(stem), ""
        if word and kind in ("weight", "bias"):
            found[name] = f"{prefix}{word}.{kind}"
    return found


def file_name(architecture: str, module: str) -> str | None:
    """llama.cpp's name of a linear layer, without `.weight`: `lm_head` to `output`."""
    match = _IN_MODEL.fullmatch(module)
    name = _name_map(architecture).get_name(f"model.layers.0.{match[2]}" if match else module)
    return str(name).replace("blk.0.", f"blk.{match[1]}.") if name and match else name


def head_count_key(architecture: str, tensor: str) -> str | None:
    """The metadata's key for how many heads of `tensor` have their rows in turns; None if they have not."""
    match = _IN_BLOCK.fullmatch(tensor) if architecture in PERMUTED else None
    count = _ROTATED.get(match[2]) if match else None
    return f"{architecture}.attention.{count}" if count else None


def block_of(tensor: str) -> int:
    """Which block a tensor belongs to; 0 for one that belongs to none."""
    match = _IN_BLOCK.fullmatch(tensor)
    return int(match[1]) if match else 0


def file_order(num_rows: int, num_heads: int) -> NDArray[np.intp]:
    """For each row as llama.cpp stores it, the index of the same row in Hugging Face's order."""
    halves = np.arange(num_rows).reshape(num_heads, 2, num_rows // num_heads // 2)
    return halves.swapaxes(1, 2).ravel()


def hub_order(num_rows: int, num_heads: int) -> NDArray[np.intp]:
    """For each row in Hugging Face's order, the index of the same row as llama.cpp stores it."""
    turns = np.arange(num_rows).reshape(num_heads, num_rows // num_heads // 2, 2)
    return turns.swapaxes(1, 2).ravel()


def _words(architecture: str) -> Iterator[tuple[str, str]]:
    known = _name_map(architecture)
    for word in _WORDS:
        if name := known.get_name(f"model.layers.0.{word}"):
            yield name, word
    for word in _OUTSIDE:
        if name := known.get_name(word):
            yield name, word


def _name_map(architecture: str) -> "TensorNameMap":
    """Of one block: the other blocks' names differ in their number alone, and the number may be a lie.

    Raises:
        BaseModelError: The `gguf` package is older than the architecture.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    for number, name in MODEL_ARCH_NAMES.items():
        if name == architecture:
            return get_tensor_name_map(number, 1)
    raise BaseModelError(f"the installed gguf does not know {architecture}; run: pip install --upgrade gguf")
