"""A base model in a folder: its linear layers and its fingerprint, from config.json and safetensors alone.

Works on a Hugging Face folder and on one that mlx-lm converted, sharded or not, without torch or MLX.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from converters.bases.config import Config, check_tables, read_json
from converters.bases.contract import Modules
from converters.bases.fingerprint import fingerprint_of
from converters.bases.gguf_names import Naming, name_layers
from converters.bases.targets import count_blocks
from converters.errors import BaseModelError
from converters.files.content import is_folder, is_there
from converters.files.safetensors import FLOATING, Tensor, TensorFile, open_tensors

_EMBEDDING = re.compile(r"(?:embed[^.]*|tok_embeddings|wte|wpe)\.weight$")
_TRANSPOSED = ("gpt2", "openai-gpt")
_SHARD = re.compile(r"[\w-][\w.-]*")


@dataclass(frozen=True, eq=False)
class FolderBase:
    """A base model's folder, headers read.

    Attributes:
        path: The folder.
        config: `config.json`; of a model with several towers, the text model's part.
        modules: Every linear layer in Hugging Face naming, sorted; embeddings and a tied head are left out.
        is_quantized: In MLX's packed form. The modules' shapes are those of the unpacked weights.
        weights: Tensor name to the file that holds it.
    """

    path: Path
    config: Config
    modules: Modules
    is_quantized: bool
    weights: Mapping[str, TensorFile]

    @property
    def num_layers(self) -> int:
        """Transformer blocks, counted by the names of the weights."""
        return count_blocks(self.weights)

    def naming(self) -> Naming:
        """Tells llama.cpp's side of the layers.

        Raises:
            BaseModelError: As `name_layers`.
        """
        return name_layers(self.path, self.config, self.modules)

    @cached_property
    def fingerprint(self) -> str:
        """What the model computes, as 64 hex digits; see `converters.bases.fingerprint`.

        Raises:
            BaseModelError: The model is quantised, and its values are no longer the ones that were trained.
        """
        if self.is_quantized:
            raise BaseModelError(
                f"{self.path}: is quantised and has no fingerprint of its own; give the fingerprint of "
                "the model it was made from"
            )
        return fingerprint_of(
            self.config,
            (
                (name, tensor.shape, partial(file.floats, name))
                for name, file in sorted(self.weights.items())
                for tensor in [file.tensors[name]]
                if tensor.dtype in FLOATING
            ),
        )


def read_folder(path: Path | str) -> FolderBase:
    """Reads the headers of the Hugging Face or MLX model in folder `path`; its weights stay on disk.

    Raises:
        BaseModelError: No such folder, no config.json, no weights, an architecture without linear layers, or
            weights that are damaged, truncated or quantised by another tool than MLX.
    """
    folder = Path(path)
    if not is_folder(folder):
        what = "is a file" if is_there(folder) else "no such folder"
        raise BaseModelError(
            f"{folder}: {what}; expected a Hugging Face or MLX model folder, or a .gguf file"
        )
    whole = read_json(folder / "config.json", "a base model")
    check_tables(whole, folder / "config.json")
    config = {**whole, **(whole.get("text_config") or {})}
    check_tables(config, folder / "config.json")
    if config.get("model_type") in _TRANSPOSED:
        raise BaseModelError(
            f"{folder}: {config['model_type']} has no linear layers, but transposed convolutions"
        )
    weights = {
        name: file
        for shard in _shards(folder)
        for file in [open_tensors(shard, BaseModelError)]
        for name in file.tensors
        if not _is_derived(name, config)
    }
    packed = config.get("quantization")
    if not packed and config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "an unknown method")
        raise BaseModelError(
            f"{folder}: is quantised by {method}; expected full precision, or MLX's quantisation"
        )
    modules = dict(sorted(_modules(weights, packed or {})))
    return FolderBase(folder, config, MappingProxyType(modules), bool(packed), weights)


def _shards(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if is_there(single):
        return [single]
    if is_there(index):
        weight_map = read_json(index, "a base model").get("weight_map")
        named = weight_map.values() if isinstance(weight_map, dict) else ()
        if not named or not all(isinstance(name, str) and _SHARD.fullmatch(name) for name in named):
            raise BaseModelError(f"{index}: its weight_map does not name a file here for every weight")
        return [folder / name for name in sorted(set(named))]
    found = sorted(folder.glob("model*.safetensors"))
    if not found:
        raise BaseModelError(f"{folder}: holds no model*.safetensors; pickled weights are not read")
    return found


def _is_derived(name: str, config: Config) -> bool:
    """Tells weights that not every tool stores: a tied head, rotary frequencies."""
    is_tied_head = name.startswith("lm_head.") and bool(config.get("tie_word_embeddings"))
    return is_tied_head or name.endswith("rotary_emb.inv_freq")


def _modules(
    weights: Mapping[str, TensorFile], packed: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[int, int]]]:
    for weight, file in weights.items():
        tensor, name = file.tensors[weight], weight.removesuffix(".weight")
        if name == weight or len(tensor.shape) != 2 or _EMBEDDING.search(weight):
            continue
        yield name, (_num_in(name, tensor, packed), tensor.shape[0])


def _num_in(name: str, tensor: Tensor, packed: Mapping[str, Any]) -> int:
    """Returns the features that go in, of the unpacked weight."""
    if tensor.dtype != "U32":
        return tensor.shape[1]
    own = packed.get(name)  # mixed recipes give some layers their own width
    bits = (own if isinstance(own, dict) else packed).get("bits", 0)
    if type(bits) is not int or not 1 <= bits <= 32:
        raise BaseModelError(f"{name}: is packed, but config.json does not say in how many bits")
    return tensor.shape[1] * 32 // bits
