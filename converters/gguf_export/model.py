"""A Hugging Face folder as a float32 GGUF file that llama.cpp loads and that computes the same.

Only what llama.cpp's graphs do to the letter is written; a model that they would only come near to is
refused. Quantising is llama.cpp's own business (`llama_model_quantize`). Facts per architecture are those of
llama.cpp's converter, https://github.com/ggml-org/llama.cpp/tree/master/conversion.

Run as: python -m converters.gguf_export.model FOLDER FILE
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converters.bases.architectures import ARCHITECTURES, Architecture, Exact, find_model_type
from converters.bases.folder import FolderBase, read_folder
from converters.bases.gguf_names import Naming, file_names
from converters.bases.numbers import EMBEDDING, FACTORS, Number, read_numbers, rope_factors
from converters.errors import BaseModelError, TunefleetError
from converters.files.safetensors import TensorFile
from converters.gguf_export.tokenizer import read_vocabulary
from converters.gguf_export.vocabulary import Vocabulary

PREFIX_KEY = "tunefleet.tokenizer.prefix"  # see Vocabulary.prefix; other programs pass it over
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_NO_MERGE = "<none> <none>"  # no file holds an empty list, and llama.cpp wants one; this pair never comes up
_HEAD = "lm_head.weight"


class _Tensor(NamedTuple):
    """One tensor to write: its name in the file, its shape and where its values come from."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[np.float32]]


def write_gguf(folder: Path, path: Path) -> None:
    """Writes the model in `folder` to `path` as float32 GGUF; one tensor at a time is in memory.

    Raises:
        BaseModelError: `folder` holds no model in full precision, one of another architecture than those of
            `ARCHITECTURES`, or one whose numbers, tensors or tokenizer llama.cpp cannot follow exactly; or
            the package `gguf` is not installed.
    """
    base = read_folder(folder)
    if base.is_quantized:
        raise BaseModelError(f"{folder}: is quantised; a GGUF file is made from full precision")
    kind = base.config.get("model_type")
    architecture = find_model_type(kind)
    if architecture is None or architecture.exact is None:
        known = ", ".join(one.model_type for one in ARCHITECTURES if one.exact)
        raise BaseModelError(f"{folder}: is of architecture {kind}, expected one of {known} to write as GGUF")
    numbers = read_numbers(base, architecture.exact)
    gguf = _gguf()
    tensors = _tensors(base, architecture, architecture.exact)
    vocabulary = read_vocabulary(folder, base.weights[EMBEDDING].tensors[EMBEDDING].shape[0])
    part = path.with_name(f"{path.name}.part")
    try:
        _write(gguf.GGUFWriter(part, architecture.name), architecture.name, numbers, vocabulary, tensors)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _tensors(base: FolderBase, architecture: Architecture, exact: Exact) -> list[_Tensor]:
    names, naming = _names(base, architecture), base.naming()
    tensors = [
        _Tensor(
            name,
            base.weights[source].tensors[source].shape,
            partial(_read, base.weights[source], source, architecture, naming),
        )
        for source, name in names.items()
    ]
    if exact.writes_tied_head and _HEAD not in base.weights:
        embedding = next(tensor for tensor in tensors if tensor.name == names[EMBEDDING])
        tensors.append(embedding._replace(name="output.weight"))
    factors = rope_factors(base.config, exact)
    if factors is not None:
        tensors.append(_Tensor(FACTORS, factors.shape, lambda: factors))
    return tensors


def _names(base: FolderBase, architecture: Architecture) -> dict[str, str]:
    """Translates the model's names to llama.cpp's, in order of the former."""
    kinds = {name: name.rpartition(".") for name in sorted(base.weights)}
    found = file_names(architecture.name, (stem for stem, _, _ in kinds.values()))
    unknown = [
        name for name, (stem, _, kind) in kinds.items() if stem not in found or kind not in ("weight", "bias")
    ]
    if unknown:
        raise BaseModelError(
            f"{base.path}: llama.cpp's {architecture.name} has no place for {', '.join(unknown)}"
        )
    return {name: f"{found[stem]}.{kind}" for name, (stem, _, kind) in kinds.items()}


def _read(file: TensorFile, name: str, architecture: Architecture, naming: Naming) -> NDArray[np.float32]:
    """Reads a weight as llama.cpp stores it."""
    values = naming.to_file_rows(name.rpartition(".")[0], file.array(name))
    is_shifted = architecture.shifts_norms and name.endswith("norm.weight")
    return values + np.float32(1) if is_shifted else values  # Gemma's norms multiply by 1 + weight


def _write(
    writer: Any,
    architecture: str,
    numbers: Mapping[str, Number],
    vocabulary: Vocabulary,
    tensors: Sequence[_Tensor],
) -> None:
    """Writes everything through a `gguf.GGUFWriter`, one tensor at a time."""
    for key, value in numbers.items():
        _add(writer, f"{architecture}.{key}", value)
    for key, value in _described(vocabulary):
        _add(writer, key, value)
    for tensor in tensors:
        num_bytes = 4 * int(np.prod(tensor.shape))
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), num_bytes)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.read())
    finally:
        writer.close()


def _described(vocabulary: Vocabulary) -> Iterator[tuple[str, Any]]:
    if vocabulary.strips_like_phi3:  # llama.cpp goes by the name, which is why no other model gets one here
        yield "general.name", "phi-3"
    yield "tokenizer.ggml.model", vocabulary.model
    yield "tokenizer.ggml.pre", vocabulary.pre
    yield "tokenizer.ggml.tokens", list(vocabulary.tokens)
    yield "tokenizer.ggml.token_type", list(vocabulary.types)
    if vocabulary.model == "gpt2":
        yield "tokenizer.ggml.merges", list(vocabulary.merges or [_NO_MERGE])
    else:
        yield "tokenizer.ggml.scores", list(vocabulary.scores)
        yield "tokenizer.ggml.add_space_prefix", vocabulary.prefix != "none"
    yield PREFIX_KEY, vocabulary.prefix
    for role, number in vocabulary.special.items():
        yield f"tokenizer.ggml.{_ROLES[role]}_token_id", number
    yield "tokenizer.ggml.add_bos_token", vocabulary.adds_bos
    yield "tokenizer.ggml.add_eos_token", vocabulary.adds_eos
    if vocabulary.chat_template is not None:
        yield "tokenizer.chat_template", vocabulary.chat_template


def _add(writer: Any, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as cause:
        raise BaseModelError("gguf is not installed; run: pip install 'tunefleet[llama]'") from cause
    return gguf


if __name__ == "__main__":
    try:
        write_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
    except TunefleetError as error:
        sys.exit(f"tunefleet: {error}")
