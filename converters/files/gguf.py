"""The GGUF layout read in place: metadata and shapes from the header, values where they lie.

The `gguf` package knows the types and how to dequantise. Its reader was dropped: it believes every count of a
header (an array of 2**60 numbers keeps it busy for ever), and a vocabulary of 152,000 tokens took it 6 s and
490 MB, against 0.15 s and 28 MB here. What is parsed may come from a stranger: the same is demanded as
llama.cpp does, and every length is checked before memory is taken.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and ggml/src/gguf.cpp
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converters.adapter import Array
from converters.errors import ConverterError
from converters.files.content import Mapped, is_file, map_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 64 << 20  # a vocabulary of 262,144 tokens with its merges takes 16 MB
MAX_TENSORS = 1 << 16
MAX_NAME_BYTES = 63  # ggml's GGML_MAX_NAME, with its closing zero
MAX_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

Value = int | float | bool | str | list[str] | NDArray[Any]


class GgufTensor(NamedTuple):
    """Where one tensor lies, and how."""

    type: str  # in ggml's words: F32, Q8_0, Q4_K, ...
    shape: tuple[int, ...]  # outermost first, as numpy counts: (out_features, in_features)
    start: int  # offset of its first byte in the file
    num_bytes: int

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class GgufFile:
    """A parsed header over the bytes it describes.

    Attributes:
        where: What messages call it.
        metadata: Numbers, texts, lists of texts, and arrays of numbers.
        tensors: By name, in the file's order.
        error: What is raised about it.
    """

    where: str
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]
    buffer: Mapped
    error: type[ConverterError]

    def floats(self, name: str, first: int = 0, count: int | None = None) -> Array:
        """Reads `count` rows of a tensor from row `first` on, dequantised, as a writable copy.

        Args:
            name: Of the tensor.
            first: Index along the first axis; of a vector, every value is a row.
            count: As many as there are, if None.

        Raises:
            ConverterError: Of the kind `error`: the type of the values cannot be dequantised.
        """
        tensor = self.tensors[name]
        count = tensor.shape[0] - first if count is None else count
        if len(tensor.shape) == 1:  # read whole, as a block may span several values
            return self._lines(name, 0, 1)[0, first : first + count].copy()
        return self._lines(name, first, count).reshape(count, *tensor.shape[1:])

    def is_same(self, name: str, other: str) -> bool:
        """Tells whether two tensors have the same shape, type and bytes."""
        one, two = self.tensors[name], self.tensors[other]
        a, b = (np.frombuffer(self.buffer, np.uint8, t.num_bytes, t.start) for t in (one, two))
        return one._replace(start=0) == two._replace(start=0) and np.array_equal(a, b)

    def _lines(self, name: str, first: int, count: int) -> Array:
        """Reads rows as a matrix; a vector is one row."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        num_lines = tensor.shape[0] if len(tensor.shape) > 1 else 1
        line_bytes = tensor.num_bytes // num_lines
        if not count:  # frombuffer refuses to read nothing at the very end
            return np.empty((0, tensor.size // num_lines), np.float32)
        start = tensor.start + first * line_bytes
        raw = np.frombuffer(self.buffer, np.uint8, count * line_bytes, start).reshape(count, line_bytes)
        try:
            with np.errstate(all="ignore"):  # a damaged scale may be infinite or no number
                values: Array = dequantize(raw, GGMLQuantizationType[tensor.type]).astype(np.float32)
                return values
        except NotImplementedError as cause:
            raise self.error(
                f"{self.where}: {name} is of type {tensor.type}, which cannot be read"
            ) from cause


class _Damaged(Exception):  # noqa: N818 - it is what the header is
    """What is wrong with a header."""


def is_gguf(path: Path) -> bool:
    """Tells whether `path` is a file that begins as GGUF does, or is called so."""
    if not is_file(path):
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC or path.suffix == ".gguf"


def open_gguf(path: Path, error: type[ConverterError]) -> GgufFile:
    """Maps the file at `path` into memory and checks its header.

    Raises:
        ConverterError: Of the kind `error`: no such file, or not GGUF, and why.
    """
    if find_spec("gguf") is None:
        raise error(f"{path}: to read it, gguf is needed; run: pip install 'tunefleet[llama]'")
    buffer = map_file(path, lambda why: error(f"{path}: {why}"))
    if not buffer:
        raise error(f"{path}: is empty, expected a GGUF file")
    try:
        metadata, tensors = _read_header(_Header(buffer))
    except _Damaged as damage:
        raise error(f"{path}: {damage}") from damage
    return GgufFile(str(path), metadata, tensors, buffer, error)


class _Header:
    """Reads a header from front to back, never beyond its bound."""

    def __init__(self, buffer: Mapped) -> None:
        self.buffer, self.at = buffer, 0
        self.end = min(len(buffer), MAX_HEADER_BYTES)

    def need(self, num_bytes: int) -> None:
        """Checks that so many bytes are left."""
        if num_bytes > self.end - self.at:
            whole = "its header is longer than any model's" if self.end < len(self.buffer) else "is truncated"
            raise _Damaged(f"{whole}: at byte {self.at} it wants {num_bytes} more of {len(self.buffer)}")

    def number(self, form: str) -> Any:
        """Reads one value of a form that `struct` knows."""
        size = struct.calcsize(f"<{form}")
        self.need(size)
        self.at += size
        return struct.unpack_from(f"<{form}", self.buffer, self.at - size)[0]

    def text(self) -> str:
        """Reads a string; what is no UTF-8 is kept as surrogates."""
        size = self.number("Q")
        self.need(size)
        self.at += size
        return self.buffer[self.at - size : self.at].decode("utf-8", "surrogateescape")

    def value(self, kind: int) -> Value:
        """Reads a metadata value of type `kind`."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if kind == _STRING:
                self.need(8 * count)
                return [self.text() for _ in range(count)]
            return self.numbers(_form(kind), count)
        value: Value = self.number(_form(kind))
        return value

    def numbers(self, form: str, count: int) -> NDArray[Any]:
        """Reads an array; it stays in the file."""
        dtype = np.dtype(f"<{form}")
        self.need(count * dtype.itemsize)
        if not count:  # frombuffer refuses to read nothing at the very end
            return np.empty(0, dtype)
        self.at += count * dtype.itemsize
        return np.frombuffer(self.buffer, dtype, count, self.at - count * dtype.itemsize)


def _form(kind: int) -> str:
    if kind not in _SCALARS:
        raise _Damaged(f"its metadata has a value of the unknown type {kind}")
    return _SCALARS[kind]


def _read_header(header: _Header) -> tuple[dict[str, Value], dict[str, GgufTensor]]:
    if header.buffer[:4] != MAGIC:
        raise _Damaged(f"is not a GGUF file: it begins with {header.buffer[:4]!r}")
    header.at = len(MAGIC)
    version = header.number("I")
    if version not in VERSIONS:
        is_swapped = int.from_bytes(version.to_bytes(4, "big"), "little") in VERSIONS
        what = "is big-endian" if is_swapped else f"is of GGUF version {version}"
        raise _Damaged(f"{what}, expected little-endian GGUF of version 2 or 3; convert the model again")
    num_tensors, num_values = header.number("Q"), header.number("Q")
    if num_tensors > MAX_TENSORS:
        raise _Damaged(f"its header tells of {num_tensors} tensors; at most {MAX_TENSORS} are read")
    header.need(13 * num_values)  # a key's length, a type, a byte
    metadata: dict[str, Value] = {}
    for _ in range(num_values):
        key = header.text()
        if key in metadata:
            raise _Damaged(f"its metadata has {_shown(key)} twice")
        metadata[key] = header.value(header.number("I"))
    if metadata.get("split.count", 1) not in (0, 1):
        raise _Damaged(
            f"is one of {metadata['split.count']} parts; join them with `llama-gguf-split --merge`"
        )
    return metadata, dict(_read_tensors(header, num_tensors, _alignment(metadata)))


def _alignment(metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise _Damaged("its general.alignment is not a power of two")
    return alignment


def _read_tensors(header: _Header, count: int, alignment: int) -> Iterator[tuple[str, GgufTensor]]:
    described = [_describe(header) for _ in range(count)]
    start = end = -(-header.at // alignment) * alignment
    seen = set()
    for name, kind, shape, num_bytes, offset in described:
        if name in seen:
            raise _Damaged(f"has tensor {_shown(name)} twice")
        if start + offset != end:
            raise _Damaged(f"tensor {_shown(name)} does not lie where its neighbours put it")
        if end + num_bytes > len(header.buffer):
            raise _Damaged(
                f"is truncated: tensor {_shown(name)} ends at byte {end + num_bytes}, "
                f"the file at {len(header.buffer)}"
            )
        seen.add(name)
        yield name, GgufTensor(kind, shape, end, num_bytes)
        end += -(-num_bytes // alignment) * alignment


def _describe(header: _Header) -> tuple[str, str, tuple[int, ...], int, int]:
    """Reads a tensor's name, type, shape, bytes and offset."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name, num_dimensions = header.text(), header.number("I")
    if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES or not name.isascii():
        raise _Damaged(
            f"has a tensor called {_shown(name)}, expected at most {MAX_NAME_BYTES} ASCII characters"
        )
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise _Damaged(
            f"tensor {_shown(name)} has {num_dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}"
        )
    sizes = [header.number("Q") for _ in range(num_dimensions)]
    number, offset = header.number("I"), header.number("Q")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise _Damaged(f"tensor {_shown(name)} is of the unknown type {number}") from None
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if not all(sizes) or sizes[0] % block:
        raise _Damaged(f"tensor {_shown(name)} of type {kind.name} has the impossible shape {sizes[::-1]}")
    return name, kind.name, tuple(sizes[::-1]), prod(sizes) // block * block_bytes, offset


def _shown(text: str) -> str:
    return repr(text[:100])
