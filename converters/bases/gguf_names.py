"""What llama.cpp calls a model's weights, and in which order it has their rows.

The names come from the `gguf` package's map of each architecture: of all that it knows for a tensor, the one
counts that Hugging Face's own model class uses.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters.adapter import Array
from converters.bases.architectures import (
    ARCHITECTURES,
    ROTATED,
    Architecture,
    Rotated,
    file_order,
    find_gguf,
    find_model_type,
    hub_order,
)
from converters.bases.config import Config, num_heads_of
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


@dataclass(frozen=True)
class Naming:
    """llama.cpp's side of a base model's linear layers."""

    architecture: str  # in llama.cpp's words
    tensors: Mapping[str, str]  # module to the name of its weight, of those that llama.cpp has a name for
    heads: Mapping[str, int]  # module to how many heads have their rows in turns, where they have

    def to_file_rows(self, module: str, rows: Array) -> Array:
        """Puts rows, one per output feature in Hugging Face's order, into llama.cpp's."""
        heads = self.heads.get(module)
        return rows if heads is None else rows[file_order(len(rows), heads)]

    def to_hub_rows(self, module: str, rows: Array) -> Array:
        """Puts rows, one per output feature in llama.cpp's order, into Hugging Face's."""
        heads = self.heads.get(module)
        return rows if heads is None else rows[hub_order(len(rows), heads)]


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


def name_layers(path: Path, config: Config, modules: Mapping[str, tuple[int, int]]) -> Naming:
    """Tells how llama.cpp names and orders the layers of a model in a folder.

    Raises:
        BaseModelError: It is of an architecture whose names in llama.cpp are not known here, or its
            config.json gives a number of heads that cannot be.
    """
    kind = config.get("model_type")
    architecture = find_model_type(kind) or find_gguf(kind)
    if architecture is None:
        known = ", ".join(sorted({name for one in ARCHITECTURES for name in (one.model_type, one.name)}))
        raise BaseModelError(f"{path}: is of architecture {kind}, expected one of {known} for GGUF")
    found = file_names(architecture.name, modules)
    tensors = {module: f"{name}.weight" for module, name in found.items()}
    heads = {}
    for module, tensor in tensors.items():
        if rotated := find_rotated(architecture, tensor):
            count, rows = num_heads_of(config, rotated.config_key), modules[module][1]
            if not isinstance(count, int) or count < 1 or rows % (2 * count):
                raise BaseModelError(
                    f"{path}: config.json gives {count!r} heads for the {rows} rows of {module}, "
                    "expected a number that divides them into pairs"
                )
            heads[module] = count
    return Naming(architecture.name, tensors, heads)


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
