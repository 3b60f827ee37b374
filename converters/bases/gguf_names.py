"""What llama.cpp calls a model's weights, from the `gguf` package's map of each architecture.

Of all the names that the map knows for a tensor, the one counts that Hugging Face's own model class uses.
"""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from converters.bases.architectures import ROTATED, Architecture, Rotated
from converters.errors import BaseModelError

if TYPE_CHECKING:
    from gguf import TensorNameMap

_WORDS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "self_attn.qkv_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_norm", "self_attn.k_norm"),
    *("input_layernorm", "post_attention_layernorm"),
    *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
_OUTSIDE = ("model.embed_tokens", "model.norm", "lm_head")
_IN_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,4})\.(.+)\.(weight|bias)")
_IN_MODEL = re.compile(r"model\.layers\.(0|[1-9]\d{0,4})\.(.+)")


def count_blocks(tensors: Iterable[str]) -> int:
    """Counts the transformer blocks that the names of a file's tensors tell of."""
    found = (_IN_BLOCK.fullmatch(name) for name in tensors)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def block_of(tensor: str) -> int:
    """Returns the number of the block that a tensor belongs to; 0 for one that belongs to none."""
    match = _IN_BLOCK.fullmatch(tensor)
    return int(match[1]) if match else 0


def find_rotated(architecture: Architecture, tensor: str) -> Rotated | None:
    """Finds which rotated layer a tensor belongs to, if the architecture has the rows of those in turns."""
    match = _IN_BLOCK.fullmatch(tensor) if architecture.turns_rows else None
    return next((one for one in ROTATED if match and one.tensor == match[2]), None)


def hub_names(architecture: str, tensors: Iterable[str]) -> dict[str, str]:
    """Translates each tensor's name that has a counterpart: `output.weight` to `lm_head.weight`.

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


def file_names(architecture: str, modules: Iterable[str]) -> dict[str, str]:
    """Translates names without `.weight`, `lm_head` to `output`, those that llama.cpp has a name for.

    Raises:
        BaseModelError: The `gguf` package is older than the architecture.
    """
    known = _name_map(architecture)
    found = {}
    for module in modules:
        match = _IN_MODEL.fullmatch(module)
        name = known.get_name(f"model.layers.0.{match[2]}" if match else module)
        if name:
            found[module] = name.replace("blk.0.", f"blk.{match[1]}.") if match else name
    return found


def _words(architecture: str) -> Iterator[tuple[str, str]]:
    """Yields llama.cpp's names beside Hugging Face's, of block 0 and of what is outside the blocks."""
    known = _name_map(architecture)
    for word in _WORDS:
        if name := known.get_name(f"model.layers.0.{word}"):
            yield name, word
    for word in _OUTSIDE:
        if name := known.get_name(word):
            yield name, word


def _name_map(architecture: str) -> "TensorNameMap":
    """Returns the map of one block: other blocks' names differ in their number alone, and that may be a lie.

    Raises:
        BaseModelError: The `gguf` package is older than the architecture.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    for number, name in MODEL_ARCH_NAMES.items():
        if name == architecture:
            return get_tensor_name_map(number, 1)
    raise BaseModelError(f"the installed gguf does not know {architecture}; run: pip install --upgrade gguf")
