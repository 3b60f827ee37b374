"""Where llama.cpp keeps each linear layer of a base model, told from a GGUF file or from a model's folder."""

from collections.abc import Mapping
from dataclasses import dataclass

from converters.adapter import Array
from converters.bases.architectures import (
    PERMUTED,
    PLAIN,
    RENAMED,
    file_name,
    file_order,
    head_count_key,
    hub_order,
)
from converters.bases.folder import Base, BaseModel
from converters.bases.gguf import GgufBase
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
        """`rows`, one per output feature in Hugging Face's order, in llama.cpp's."""
        heads = self.heads.get(module)
        return rows if heads is None else rows[file_order(len(rows), heads)]

    def to_hub_rows(self, module: str, rows: Array) -> Array:
        """`rows`, one per output feature in llama.cpp's order, in Hugging Face's."""
        heads = self.heads.get(module)
        return rows if heads is None else rows[hub_order(len(rows), heads)]


def naming_of(base: Base) -> Naming:
    """How llama.cpp names and orders what `base` has.

    Raises:
        BaseModelError: It is of an architecture whose names in llama.cpp are not known here.
    """
    if isinstance(base, GgufBase):
        tensors = {module: base.tensor_of(module) for module in base.modules}
        heads = {module: count for module in tensors if (count := base.heads_of(module))}
        return Naming(base.architecture, tensors, heads)
    assert isinstance(base, BaseModel)
    kind = str(base.config.get("model_type"))
    architecture = RENAMED.get(kind, kind)
    if architecture not in PERMUTED | PLAIN:
        known = ", ".join(sorted(RENAMED.keys() | PERMUTED | PLAIN))
        raise BaseModelError(f"{base.path}: is of architecture {kind}, expected one of {known} for GGUF")
    found = {module: file_name(architecture, module) for module in base.modules}
    tensors = {module: f"{name}.weight" for module, name in found.items() if name}
    return Naming(architecture, tensors, _heads(base, architecture, tensors))


def _heads(base: BaseModel, architecture: str, tensors: Mapping[str, str]) -> dict[str, int]:
    num_heads = base.config.get("num_attention_heads")
    counts = {"head_count": num_heads, "head_count_kv": base.config.get("num_key_value_heads") or num_heads}
    heads = {}
    for module, tensor in tensors.items():
        if key := head_count_key(architecture, tensor):
            count = counts[key.rpartition(".")[2]]
            if not isinstance(count, int) or count < 1 or base.modules[module][1] % (2 * count):
                rows = base.modules[module][1]
                raise BaseModelError(
                    f"{base.path}: config.json gives {count!r} heads for the {rows} rows of {module}, "
                    "expected a number that divides them into pairs"
                )
            heads[module] = count
    return heads
