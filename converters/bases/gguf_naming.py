"""Where llama.cpp keeps each linear layer of a base model, told from a GGUF file or from a model's folder."""

from collections.abc import Mapping
from dataclasses import dataclass

from converters.adapter import Array
from converters.bases.architectures import (
    ARCHITECTURES,
    Architecture,
    file_order,
    find_gguf,
    find_model_type,
    hub_order,
)
from converters.bases.config import num_heads_of
from converters.bases.contract import Base
from converters.bases.folder import FolderBase
from converters.bases.gguf import GgufBase
from converters.bases.gguf_names import file_names, find_rotated
from converters.errors import BaseModelError


@dataclass(frozen=True)
class Naming:
    """llama.cpp's side of a base model's linear layers.

    Attributes:
        architecture: In llama.cpp's words.
        tensors: Module to the name of its weight; without modules that llama.cpp has no name for.
        heads: Module to how many heads have their rows in turns, where they have.
    """

    architecture: str
    tensors: Mapping[str, str]
    heads: Mapping[str, int]

    def to_file_rows(self, module: str, rows: Array) -> Array:
        """Puts rows, one per output feature in Hugging Face's order, into llama.cpp's."""
        heads = self.heads.get(module)
        return rows if heads is None else rows[file_order(len(rows), heads)]

    def to_hub_rows(self, module: str, rows: Array) -> Array:
        """Puts rows, one per output feature in llama.cpp's order, into Hugging Face's."""
        heads = self.heads.get(module)
        return rows if heads is None else rows[hub_order(len(rows), heads)]


def naming_of(base: Base) -> Naming:
    """Tells how llama.cpp names and orders what `base` has.

    Raises:
        BaseModelError: It is of an architecture whose names in llama.cpp are not known here.
    """
    if isinstance(base, GgufBase):
        tensors = {module: base.names[f"{module}.weight"] for module in base.modules}
        heads = {module: base.heads[tensor] for module, tensor in tensors.items() if tensor in base.heads}
        return Naming(base.architecture.name, tensors, heads)
    assert isinstance(base, FolderBase)
    kind = base.config.get("model_type")
    architecture = find_model_type(kind) or find_gguf(kind)
    if architecture is None:
        known = sorted({name for one in ARCHITECTURES for name in (one.model_type, one.name)})
        raise BaseModelError(
            f"{base.path}: is of architecture {kind}, expected one of {', '.join(known)} for GGUF"
        )
    found = file_names(architecture.name, base.modules)
    tensors = {module: f"{name}.weight" for module, name in found.items()}
    return Naming(architecture.name, tensors, _heads(base, architecture, tensors))


def _heads(base: FolderBase, architecture: Architecture, tensors: Mapping[str, str]) -> dict[str, int]:
    """Returns the heads of every layer whose rows llama.cpp has in turns."""
    heads = {}
    for module, tensor in tensors.items():
        if rotated := find_rotated(architecture, tensor):
            count, rows = num_heads_of(base.config, rotated.config_key), base.modules[module][1]
            if not isinstance(count, int) or count < 1 or rows % (2 * count):
                raise BaseModelError(
                    f"{base.path}: config.json gives {count!r} heads for the {rows} rows of {module}, "
                    "expected a number that divides them into pairs"
                )
            heads[module] = count
    return heads
