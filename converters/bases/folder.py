"""A base model on disk: its linear layers and its fingerprint, from config.json and safetensors alone.

Works on a Hugging Face folder and on one that mlx-lm converted, sharded or not, without torch or MLX; a GGUF
file is read by `gguf_base.py` and has the same fingerprint as what it was made from.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from converters.errors import BaseModelError, UnsupportedAdapter
from converters.faults import Fault
from converters.files.safetensors import FLOATING, Tensor, TensorFile, open_tensors

Modules = Mapping[str, tuple[int, int]]  # name to (in_features, out_features)
ReadValues = Callable[[int, int], NDArray[np.float32]]  # (first, count) of a flat tensor

RUN_VALUES = 4096  # values of one sampled run; a run of bfloat16 is two pages of a disk
NUM_RUNS = 16
MAX_SHOWN = 12  # names of layers in a short message
ALL_LINEAR = "all-linear"  # among targets
ALL_LAYERS = -1
_EMBEDDING = re.compile(r"(?:embed[^.]*|tok_embeddings|wte|wpe)\.weight$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output|score)$")
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_TRANSPOSED = ("gpt2", "openai-gpt")
_SAME_GRAPH = {"mistral": "llama"}  # they differ in name, and in a window that is narrower than the context
_NORM_EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")


class Base(Protocol):
    """A base model on disk, headers read: a folder's `BaseModel` or a GGUF file's `GgufBase`."""

    @property
    def path(self) -> Path:
        """The folder or file."""

    @property
    def modules(self) -> Modules:
        """Every linear layer in Hugging Face naming, sorted; embeddings and a tied head are left out."""

    @property
    def num_layers(self) -> int:
        """Transformer blocks."""

    @property
    def is_quantized(self) -> bool:
        """Whether its weights are not the ones that were trained."""

    @property
    def fingerprint(self) -> str:
        """What the model computes, as 64 hex digits; see `BaseModel.fingerprint`."""


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A base model's folder, headers read.

    Attributes:
        path: The folder.
        config: `config.json`; of a model with several towers, the text model's part.
        modules: Every linear layer in Hugging Face naming, sorted; embeddings and a tied head are left out.
        is_quantized: In MLX's packed form. The modules' shapes are those of the unpacked weights.
    """

    path: Path
    config: Mapping[str, Any]
    modules: Modules
    is_quantized: bool
    weights: Mapping[str, TensorFile]  # tensor name to the file that holds it

    @property
    def num_layers(self) -> int:
        """Transformer blocks, counted by the names of the weights."""
        found = (_BLOCK.search(name) for name in self.weights)
        return max((int(match[1]) + 1 for match in found if match), default=0)

    @cached_property
    def fingerprint(self) -> str:
        """What the model computes, as 64 hex digits: sha256 of its architecture's numbers and its weights.

        The same for a Hugging Face folder and for its conversion by mlx-lm, for one file and for shards, and
        for bfloat16, float16 and float32 as long as the values are the same. Of each floating tensor, in
        order of names, the name, the shape and the values as little-endian float32 are hashed; of one with
        more than 65,536 values 16 evenly spaced runs of 4,096, so that a large model takes seconds. (Single
        values in even strides were dropped: they touch every page of the file.) Rotary frequencies and a
        tied head are left out: not every tool stores them. Where mlx-lm stacks or drops weights (mixtures of
        experts, image towers), its folder is a model of its own.

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


def read_base(path: Path | str) -> Base:
    """Reads the headers of the model in folder or GGUF file `path`; its weights stay on disk.

    Raises:
        BaseModelError: As `read_folder`, or of a GGUF file as `read_gguf`.
    """
    if Path(path).suffix != ".gguf" or Path(path).is_dir():
        return read_folder(path)
    from converters.bases.gguf import read_gguf  # only here is the gguf package needed

    return read_gguf(path)


def read_folder(path: Path | str) -> BaseModel:
    """Reads the headers of the Hugging Face or MLX model in folder `path`; its weights stay on disk.

    Raises:
        BaseModelError: No such folder, no config.json, no weights, an architecture without linear layers, or
            weights that are damaged, truncated or quantised by another tool than MLX.
    """
    folder = Path(path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise BaseModelError(
            f"{folder}: {what}; expected a Hugging Face or MLX model folder, or a .gguf file"
        )
    whole = _json(folder / "config.json")
    config = {**whole, **(whole.get("text_config") or {})}
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
    return BaseModel(folder, config, MappingProxyType(modules), bool(packed), weights)


def fingerprint_of(
    config: Mapping[str, Any], weights: Iterable[tuple[str, tuple[int, ...], ReadValues]]
) -> str:
    """The fingerprint of a model from its configuration and, in order of names, its floating weights."""
    digest = hashlib.sha256(_architecture(config))
    for name, shape, read in weights:
        digest.update(f"{name} {shape}\n".encode())
        for first, count in _runs(prod(shape)):
            digest.update(read(first, count).astype("<f4").tobytes())
    return digest.hexdigest()


def match_targets(
    modules: Modules, targets: Iterable[str], num_layers: int = ALL_LAYERS
) -> dict[str, tuple[int, int]]:
    """The modules whose name is one of `targets` or ends in it: `q_proj` is every block's.

    Args:
        modules: Of the base model.
        targets: `all-linear` is every layer but the head, as in PEFT.
        num_layers: Only those in the last so many blocks; -1 is all, those outside the blocks too.

    Raises:
        UnsupportedAdapter: Naming every target that matches nothing, and what there is; or the model has
            fewer blocks.
    """
    wanted = list(targets)
    modules = _of_last(num_layers, modules)
    matched = {t: [name for name in modules if _is_target(name, t)] for t in wanted}
    missing = [target for target, names in matched.items() if not names]
    if missing or not wanted:
        there = sorted({name.rpartition(".")[2] for name in modules})
        told = f"no module is called {', '.join(missing) or 'nothing'}; the model has: "
        many = f"{', '.join(there[:MAX_SHOWN])} and {len(there) - MAX_SHOWN} more"
        brief = told + many if len(there) > MAX_SHOWN else ""
        raise UnsupportedAdapter.of("", [Fault(told + ", ".join(there), brief=brief)])
    chosen = {name for names in matched.values() for name in names}
    return {name: shape for name, shape in modules.items() if name in chosen}


def _is_target(name: str, target: str) -> bool:
    if target == ALL_LINEAR:
        return not _HEAD.search(name)
    return f".{name}".endswith(f".{target}")


def _of_last(num_layers: int, modules: Modules) -> Modules:
    """Modules in the last so many blocks."""
    if num_layers == ALL_LAYERS:
        return modules
    block_of = {name: int(match[1]) for name in modules if (match := _BLOCK.search(name))}
    num_blocks = max(block_of.values(), default=-1) + 1
    if not 0 < num_layers <= num_blocks:
        raise UnsupportedAdapter(
            f"num_layers is {num_layers}, expected 1 to {num_blocks}, the model's blocks, "
            f"or {ALL_LAYERS} for all"
        )
    first = num_blocks - num_layers
    return {name: shape for name, shape in modules.items() if block_of.get(name, -1) >= first}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as cause:
        raise BaseModelError(f"{path}: cannot be read: {cause.strerror}; a base model needs it") from cause
    except ValueError as cause:
        raise BaseModelError(f"{path}: is not JSON: {cause}") from cause
    if not isinstance(content, dict):
        raise BaseModelError(f"{path}: holds a {type(content).__name__}, expected a JSON object")
    return content


def _shards(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        weight_map = _json(index).get("weight_map", {})
        return [folder / name for name in sorted(set(weight_map.values()))]
    found = sorted(folder.glob("model*.safetensors"))
    if not found:
        raise BaseModelError(f"{folder}: holds no model*.safetensors; pickled weights are not read")
    return found


def _is_derived(name: str, config: Mapping[str, Any]) -> bool:
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
    if tensor.dtype != "U32":
        return tensor.shape[1]
    own = packed.get(name)  # mixed recipes give some layers their own width
    bits = (own if isinstance(own, dict) else packed).get("bits", 0)
    if not bits:
        raise BaseModelError(f"{name}: is packed, but config.json does not say in how many bits")
    return tensor.shape[1] * 32 // int(bits)


def _architecture(config: Mapping[str, Any]) -> bytes:
    """The numbers that change what the weights compute, alike in configs of transformers 4 and 5."""
    heads = config.get("num_attention_heads")
    hidden = config.get("hidden_size")
    rope = {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {})}
    rope |= config.get("rope_parameters") or {}
    kind = rope.pop("type", None) or rope.get("rope_type")
    partial_rotary = rope.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor")
    if partial_rotary not in (None, 1):
        rope["partial_rotary_factor"] = partial_rotary
    numbers = {
        "model_type": _SAME_GRAPH.get(config.get("model_type", ""), config.get("model_type")),
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or (hidden // heads if hidden and heads else None),
        "norm_eps": next((config[key] for key in _NORM_EPS if key in config), None),
        "rope": rope | {"rope_type": kind or "default"},
    }
    return json.dumps(_floats(numbers), sort_keys=True).encode()


def _floats(value: Any) -> Any:
    """Numbers as floats: 10000 and 10000.0 are the same."""
    if isinstance(value, dict):
        return {key: _floats(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [_floats(entry) for entry in value]
    return float(value) if isinstance(value, int) else value


def _runs(size: int) -> Iterator[tuple[int, int]]:
    if size <= RUN_VALUES * NUM_RUNS:
        yield 0, size
    else:
        yield from ((i * (size - RUN_VALUES) // (NUM_RUNS - 1), RUN_VALUES) for i in range(NUM_RUNS))
