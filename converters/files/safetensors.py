"""The safetensors layout read in place: shapes from the header, values where they lie.

The `safetensors` package writes our files; for reading it copies whole tensors and its numpy side knows no
bfloat16, while a base model's fingerprint takes samples out of many gigabytes, and an adapter that came
over the wire is hostile until every length in its header has been checked.

Source: https://github.com/huggingface/safetensors#format
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from converters.errors import ConverterError
from converters.files.content import Mapped, map_file
from converters.files.text import decode_record

MAX_HEADER_BYTES = 64 << 20  # 400,000 tensors; the safetensors package stops at 100 MB
MAX_DIMENSIONS = 8
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U32": "<u4"}
_WIDTH = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_WIDTH |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
FLOATING = ("F64", "F32", "F16", "BF16")


class _Entry(msgspec.Struct, frozen=True):
    """One tensor of the header, as it stands in JSON."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]  # relative to the first byte after the header


class Tensor(NamedTuple):
    """Where one tensor lies."""

    dtype: str  # in the format's words: F32, BF16, …
    shape: tuple[int, ...]
    start: int  # offset of its first byte in the buffer

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)


@dataclass(frozen=True)
class TensorFile:
    """A parsed header over the bytes it describes.

    Attributes:
        where: What messages call it: a path, or what the payload is.
        tensors: By name, in sorted order.
        metadata: The header's free text fields.
    """

    where: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    buffer: Mapped

    def floats(self, name: str, first: int = 0, count: int | None = None) -> NDArray[np.float32]:
        """Reads `count` values from `first` on, flat, as a writable float32 copy; `name` must be floating."""
        tensor = self.tensors[name]
        count = tensor.size - first if count is None else count
        if count == 0:  # frombuffer refuses to read nothing at the very end
            return np.empty(0, np.float32)
        offset = tensor.start + first * _WIDTH[tensor.dtype]
        raw: NDArray[Any] = np.frombuffer(self.buffer, _NUMPY[tensor.dtype], count, offset)
        if tensor.dtype == "BF16":  # the upper half of a float32
            return (raw.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite
            return raw.astype(np.float32)

    def array(self, name: str) -> NDArray[np.float32]:
        """Reads the whole tensor in its shape, as a writable float32 copy; `name` must be floating."""
        return self.floats(name).reshape(self.tensors[name].shape)


def open_tensors(path: Path, error: type[ConverterError]) -> TensorFile:
    """Maps the file at `path` into memory and checks its header.

    Raises:
        ConverterError: Of the kind `error`: no such file, or not safetensors, and why.
    """
    content = map_file(path, lambda why: error(f"{path}: {why}"))
    return parse_tensors(content, str(path), error)


def parse_tensors(buffer: Mapped, where: str, error: type[ConverterError]) -> TensorFile:
    """Checks the header of `buffer`: every tensor lies inside, and together they fill it without overlap.

    Raises:
        ConverterError: Of the kind `error`, naming the first fault: behind it the header cannot be trusted.
    """
    header_bytes = int.from_bytes(buffer[:8], "little")
    start = 8 + header_bytes
    if len(buffer) < 8 or header_bytes > MAX_HEADER_BYTES or start > len(buffer):
        raise error(f"{where}: {len(buffer)} bytes are not a safetensors file, or the file is truncated")

    def told(why: str) -> ConverterError:
        return error(f"{where}: its header is not that of a safetensors file: {why}")

    header = decode_record(buffer[8:start], dict[str, msgspec.Raw], told)
    described = header.pop("__metadata__", msgspec.Raw(b"null"))  # MLX writes a null, too
    metadata = {} if bytes(described) == b"null" else decode_record(bytes(described), dict[str, str], told)
    entries = {name: decode_record(bytes(raw), _Entry, told) for name, raw in header.items()}
    for fault in _faults(entries, len(buffer) - start):
        raise error(f"{where}: {fault}; the file is truncated or damaged")
    tensors = {
        name: Tensor(entry.dtype, tuple(entry.shape), start + entry.data_offsets[0])
        for name, entry in sorted(entries.items())
    }
    return TensorFile(where, tensors, metadata, buffer)


def _faults(entries: Mapping[str, _Entry], num_bytes: int) -> Iterator[str]:
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        if entry.dtype not in _WIDTH:
            yield f"tensor {name[:100]!r} has the unknown type {entry.dtype[:20]!r}"
        elif len(entry.shape) > MAX_DIMENSIONS or any(n < 0 for n in entry.shape):
            yield f"tensor {name[:100]!r} has the impossible shape {tuple(entry.shape[:MAX_DIMENSIONS])}"
        elif entry.data_offsets != (end, end + prod(entry.shape) * _WIDTH[entry.dtype]):
            yield f"tensor {name[:100]!r} does not lie where its shape and its neighbours put it"
        else:
            end = entry.data_offsets[1]
    if end != num_bytes:
        yield f"its tensors take {end} bytes, but {num_bytes} are there"
