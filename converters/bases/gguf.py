"""A base model in a GGUF file: its linear layers in Hugging Face's names, its weights in either order.

Only the header is read; weights stay on disk. Needs the `gguf` package and no other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np

from converters.adapter import Array
from converters.bases.architectures import ARCHITECTURES, Architecture, find_gguf, hub_order
from converters.bases.contract import Modules
from converters.bases.fingerprint import fingerprint_of
from converters.bases.gguf_names import Naming, block_of, count_blocks, find_rotated, hub_names
from converters.errors import BaseModelError
from converters.files.gguf import GgufFile, Value, open_gguf

FULL_PRECISION = ("F32", "F16", "BF16")
EMBEDDINGS, HEAD = "token_embd.weight", "output.weight"
_DERIVED = "rope_"  # frequencies that llama.cpp's converter computes from the configuration


@dataclass(frozen=True, eq=False)
class GgufBase:
    """A GGUF model, header read.

    Attributes:
        path: The file.
        architecture: The first of those with llama.cpp's name for it.
        modules: Every linear layer in Hugging Face naming, sorted; embeddings and a tied head are left out.
        names: Hugging Face's name of a weight to its name in the file; norms and embeddings, too.
        heads: A tensor's name in the file to how many heads have their rows in turns, where they have.
    """

    path: Path
    architecture: Architecture
    modules: Modules
    names: Mapping[str, str]
    heads: Mapping[str, int]
    file: GgufFile

    @property
    def metadata(self) -> Mapping[str, Value]:
        """The file's, as it stands."""
        return self.file.metadata

    @property
    def num_layers(self) -> int:
        """Transformer blocks."""
        return count_blocks(self.file.tensors)

    @property
    def max_tokens(self) -> int:
        """The longest context that the model was made for."""
        return self.number("context_length")

    @property
    def vocab_size(self) -> int:
        """Rows of the token embeddings."""
        return self.file.tensors[EMBEDDINGS].shape[0]

    @property
    def num_parameters(self) -> int:
        """Values of all weights together."""
        return sum(tensor.size for name, tensor in self.file.tensors.items() if not name.startswith(_DERIVED))

    @property
    def types(self) -> Mapping[str, str]:
        """A tensor's name to its type: F32, Q8_0, Q4_K, ..."""
        return {name: tensor.type for name, tensor in self.file.tensors.items()}

    @property
    def is_quantized(self) -> bool:
        """Whether any matrix is in less than 16 bits."""
        tensors = self.file.tensors.values()
        return any(len(tensor.shape) > 1 and tensor.type not in FULL_PRECISION for tensor in tensors)

    def naming(self) -> Naming:
        """Tells llama.cpp's side of the layers."""
        tensors = {module: self.names[f"{module}.weight"] for module in self.modules}
        heads = {module: self.heads[tensor] for module, tensor in tensors.items() if tensor in self.heads}
        return Naming(self.architecture.name, tensors, heads)

    @cached_property
    def fingerprint(self) -> str:
        """What the model computes: that of the Hugging Face model it was made from, if its values were kept.

        Names, order of rows and the architecture's numbers are turned back; a number that the file has in
        float32 is taken for the shortest decimal that means it. See `converters.bases.fingerprint`.

        Raises:
            BaseModelError: It is quantised, or its file does not tell what its source was.
        """
        if reason := self._obstacle():
            raise BaseModelError(
                f"{self.path}: {reason} and has no fingerprint of its own; give the fingerprint of the model "
                "it was made from"
            )
        return fingerprint_of(self._config(), self._weights())

    def floats(self, tensor: str, first: int = 0, count: int | None = None) -> Array:
        """Reads `count` rows from row `first` on, as the file has them; see `GgufFile.floats`."""
        return self.file.floats(tensor, first, count)

    def hub_floats(self, tensor: str, first: int = 0, count: int | None = None) -> Array:
        """Reads as `floats` does, but counts rows in Hugging Face's order."""
        num_rows, heads = self.file.tensors[tensor].shape[0], self.heads.get(tensor)
        count = num_rows - first if count is None else count
        if heads is None or not count:
            return self.floats(tensor, first, count)
        wanted = hub_order(num_rows, heads)[first : first + count]
        lowest = int(wanted.min())
        return self.floats(tensor, lowest, int(wanted.max()) + 1 - lowest)[wanted - lowest]

    def number(self, key: str, default: int | None = None) -> int:
        """Returns a count in the architecture's part of the metadata.

        Raises:
            BaseModelError: It is no count, or missing without a default.
        """
        return _number(self.file, self.key(key), default=default)

    def decimal(self, key: str, default: float | None = None) -> float:
        """Returns a number in the architecture's part of the metadata; of a float32 the shortest decimal.

        Raises:
            BaseModelError: It is no number, or missing without a default.
        """
        value = self.metadata.get(self.key(key), default)
        if not isinstance(value, int | float):
            raise BaseModelError(
                f"{self.path}: its metadata has {value!r} for {self.key(key)}, expected a number"
            )
        return float(str(np.float32(value)))  # 1e-05, not 9.999999747378752e-06

    def key(self, name: str) -> str:
        """Returns the whole key of a number of the architecture: `llama.block_count`."""
        return f"{self.architecture.name}.{name}"

    def _obstacle(self) -> str | None:
        """Tells why the fingerprint of the source cannot be told; None where it can."""
        unnamed = sorted(set(self.file.tensors) - set(self.names.values()))
        scaling = self.metadata.get(self.key("rope.scaling.type"), "none")
        if self.is_quantized:
            return "is quantised"
        if self.architecture.shifts_norms:
            return "has its norms stored plus one"
        if any(name.startswith(_DERIVED) for name in unnamed) or scaling not in ("none", "linear"):
            return "has rotary frequencies whose formula it does not tell"
        return f"has weights without a counterpart ({', '.join(unnamed[:3])})" if unnamed else None

    def _config(self) -> dict[str, object]:
        """Returns the part of config.json that counts for the fingerprint."""
        heads = self.number("attention.head_count")
        head_dim = self.number("attention.key_length", self.number("embedding_length") // heads)
        rope: dict[str, object] = {"rope_theta": self.decimal("rope.freq_base", 10000.0)}
        if self.key("rope.scaling.factor") in self.metadata:
            rope |= {"rope_type": "linear", "factor": self.decimal("rope.scaling.factor")}
        return {
            "model_type": self.architecture.model_type,
            "num_attention_heads": heads,
            "num_key_value_heads": self.number("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "partial_rotary_factor": self.number("rope.dimension_count", head_dim) / head_dim,
            "rms_norm_eps": self.decimal("attention.layer_norm_rms_epsilon"),
            "rope_parameters": rope,
        }

    def _weights(self) -> Iterator[tuple[str, tuple[int, ...], "Reader"]]:
        """Yields name, shape and values of every weight, in order of names."""
        for hub_name, name in sorted(self.names.items()):
            if name != HEAD or not self.file.is_same(HEAD, EMBEDDINGS):  # olmo2's are never tied in the file
                yield hub_name, self.file.tensors[name].shape, Reader(self, name)


@dataclass(frozen=True)
class Reader:
    """Reads values of one tensor by their place in Hugging Face's order."""

    base: GgufBase
    name: str

    def __call__(self, first: int, count: int) -> Array:
        """Reads `count` values from index `first` on, flat."""
        tensor = self.base.file.tensors[self.name]
        width = tensor.size // tensor.shape[0]
        row = first // width
        num_rows = -(-(first + count) // width) - row
        values = self.base.hub_floats(self.name, row, num_rows).ravel()
        return values[first - row * width :][:count]


def read_gguf(path: Path | str) -> GgufBase:
    """Reads the header of the model in the file `path`; its weights stay on disk.

    Raises:
        BaseModelError: It is no GGUF model, is truncated or damaged, holds a vocabulary alone or one part of
            a split model, or is of an architecture that is not known here.
    """
    file = open_gguf(Path(path), BaseModelError)
    kind, told = (file.metadata.get(f"general.{key}") for key in ("type", "architecture"))
    if kind not in (None, "model"):
        raise BaseModelError(f"{path}: is a GGUF file of type {kind!r}, expected a model")
    architecture = find_gguf(told)
    if architecture is None:
        known = ", ".join(sorted({one.name for one in ARCHITECTURES}))
        raise BaseModelError(f"{path}: is of architecture {told!r}, expected one of {known}")
    _check(file, architecture.name)
    heads = dict(_heads(file, architecture))
    names = {hub_name: name for name, hub_name in hub_names(architecture.name, file.tensors).items()}
    names = dict(_with_fused(file, names))
    shapes = {hub_name: file.tensors[name].shape for hub_name, name in sorted(names.items())}
    modules = {
        hub_name.removesuffix(".weight"): (shape[1], shape[0])
        for hub_name, shape in shapes.items()
        if hub_name.endswith(".weight") and len(shape) == 2 and names[hub_name] != EMBEDDINGS
    }
    return GgufBase(
        Path(path),
        architecture,
        MappingProxyType(modules),
        MappingProxyType(names),
        MappingProxyType(heads),
        file,
    )


def _check(file: GgufFile, architecture: str) -> None:
    """Checks what everything else relies on.

    Raises:
        BaseModelError: Naming the first fault.
    """
    if not file.tensors:
        raise BaseModelError(f"{file.where}: holds a vocabulary and no weights, expected a whole model")
    told, found = _number(file, f"{architecture}.block_count"), count_blocks(file.tensors)
    if EMBEDDINGS not in file.tensors or len(file.tensors[EMBEDDINGS].shape) != 2:
        raise BaseModelError(f"{file.where}: has no matrix {EMBEDDINGS}, expected a language model")
    if told != found:
        raise BaseModelError(f"{file.where}: tells of {told} blocks and holds {found}; it is not whole")


def _number(file: GgufFile, key: str, index: int = 0, default: int | None = None) -> int:
    """Returns a count in the metadata; of one per block, that of block `index`."""
    value = file.metadata.get(key, default)
    if isinstance(value, np.ndarray) and index < len(value):  # some architectures have one per block
        value = value[index].item()
    if type(value) is not int or value < 1:
        raise BaseModelError(f"{file.where}: its metadata has {value!r} for {key}, expected a count")
    return value


def _heads(file: GgufFile, architecture: Architecture) -> Iterator[tuple[str, int]]:
    """Yields the number of heads of every tensor whose rows are in turns.

    Raises:
        BaseModelError: It does not divide the rows.
    """
    for name, tensor in file.tensors.items():
        if rotated := find_rotated(architecture, name):
            key = f"{architecture.name}.{rotated.gguf_key}"
            heads, num_rows = _number(file, key, block_of(name)), tensor.shape[0]
            if num_rows % (2 * heads):
                raise BaseModelError(
                    f"{file.where}: {name} has {num_rows} rows, which {key} {heads} does not divide"
                )
            yield name, heads


def _with_fused(file: GgufFile, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Calls an up projection twice as wide as what goes down `gate_up_proj`, as Hugging Face does."""
    for hub_name, name in names.items():
        up, down = (file.tensors.get(f"blk.{block_of(name)}.ffn_{way}.weight") for way in ("up", "down"))
        is_fused = ".ffn_up." in name and up and down and up.shape[0] == 2 * down.shape[-1]
        yield (hub_name.replace("up_proj", "gate_up_proj") if is_fused else hub_name), name
