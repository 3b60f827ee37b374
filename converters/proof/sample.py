"""A small sample of a base model in full precision, for a device to hold a quantised copy of it against.

A safetensors file of at most 256 KiB: under each weight's name some runs of its values, and in the metadata
where they were taken from, every weight's shape and the architecture's numbers. Values stand in the shortest
type that has them exactly. The same model gives the same bytes.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from safetensors.numpy import save

from converters.adapter import Array
from converters.bases.contract import Base
from converters.bases.numbers import Number
from converters.errors import BaseModelError
from converters.files.safetensors import TensorFile, parse_tensors
from converters.files.text import decode_record
from converters.proof.weights import Weights, weights_of

FORMAT = 1
MAX_BYTES = 1 << 20  # what a device downloads at most; the file is smaller by design
RUN_VALUES = 256  # a superblock of llama.cpp's k-quants
MAX_VALUE_BYTES = 200 << 10
MAX_VALUES = 100_000
_FACTS = "tunefleet.sketch"
_BFLOAT16 = "U16"  # numpy, and so the safetensors package's numpy side, has no bfloat16

Place = tuple[int, int]  # row and first column of a run


class Facts(Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in the metadata."""

    format: int
    numbers: dict[str, Number] | None
    architecture: str | None
    shapes: dict[str, tuple[int, ...]]
    places: dict[str, list[Place]]


@dataclass(frozen=True)
class Sample:
    """A parsed sample."""

    facts: Facts
    file: TensorFile

    def runs(self, name: str) -> Iterator[tuple[Place, Array]]:
        """Yields where each run of a weight begins, and its values."""
        yield from zip(self.facts.places[name], _restored(self.file, name), strict=True)


def make_sample(base: Base) -> bytes:
    """Takes the sample of `base`, as bytes.

    Raises:
        BaseModelError: It is quantised, or holds no weights.
    """
    if base.is_quantized:
        raise BaseModelError(f"{base.path}: is quantised; devices prove their copies by the full precision")
    weights = weights_of(base)
    payload = _dump(weights, MAX_VALUES)
    return payload if len(payload) <= MAX_VALUE_BYTES else _dump(weights, MAX_VALUES // 2)


def parse_sample(payload: bytes) -> Sample:
    """Decodes the sample in `payload`.

    Raises:
        BaseModelError: It is none, or of another format.
    """
    file = parse_tensors(payload, "the fleet's sample of its base model", BaseModelError)

    def told(_: str) -> BaseModelError:
        return BaseModelError(f"{file.where}: is not of format {FORMAT}; upgrade this tunefleet")

    facts = decode_record(file.metadata.get(_FACTS, ""), Facts, told)
    fits = file.tensors and all(_fits(facts, name, file) for name in file.tensors)
    if facts.format != FORMAT or not fits:
        raise BaseModelError(
            f"{file.where}: is of format {facts.format}, or its places do not fit its values"
        )
    return Sample(facts, file)


def _fits(facts: Facts, name: str, file: TensorFile) -> bool:
    """Tells whether a tensor holds runs of the places that it is said to come from."""
    tensor, places, shape = file.tensors[name], facts.places.get(name), facts.shapes.get(name)
    if not places or not shape or len(shape) > 2 or tensor.dtype not in ("F32", "F16", _BFLOAT16):
        return False
    (num_rows, num_columns), width = _rows_and_columns(shape), tensor.shape[-1]
    return tensor.shape == (len(places), width) and all(
        0 <= row < num_rows and 0 <= first <= num_columns - width for row, first in places
    )


def _rows_and_columns(shape: tuple[int, ...]) -> tuple[int, int]:
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def _dump(weights: Weights, num_values: int) -> bytes:
    names = [name for name, shape in sorted(weights.shapes.items()) if len(shape) in (1, 2) and all(shape)]
    if not names:
        raise BaseModelError(f"{weights.where}: holds no weights, expected a base model")
    names = names[:: -(-len(names) * RUN_VALUES // num_values)]  # a very deep model: not every weight
    each = num_values // max(len(names), 1)
    places = {name: _places(name, weights.shapes[name], each) for name in names}
    tensors = {name: _stored(_sample(weights, name, runs)) for name, runs in places.items()}
    shapes = dict(sorted(weights.shapes.items()))
    numbers = dict(weights.numbers) if weights.numbers else None
    facts = Facts(FORMAT, numbers, weights.architecture, shapes, places)
    payload: bytes = save(tensors, metadata={_FACTS: msgspec.json.encode(facts).decode()})
    return payload


def _places(name: str, shape: tuple[int, ...], num_values: int) -> list[Place]:
    """Spreads runs all over a weight by a golden section, whole superblocks where it has such."""
    num_rows, num_columns = _rows_and_columns(shape)
    width = min(RUN_VALUES, num_columns)
    per_row = num_columns // width
    num_runs = num_rows * per_row
    step = max(int(0.618 * num_runs), 1)
    while gcd(step, num_runs) > 1:
        step += 1
    start = zlib.crc32(name.encode())
    chosen = sorted(
        (start + number * step) % num_runs for number in range(min(max(num_values // width, 1), num_runs))
    )
    return [(run // per_row, run % per_row * width) for run in chosen]


def _sample(weights: Weights, name: str, places: list[Place]) -> Array:
    width = min(RUN_VALUES, weights.shapes[name][-1])
    return np.stack([weights.grid(name, row, first, width).values for row, first in places])


def _stored(values: Array) -> NDArray[Any]:
    """Casts values to the shortest type that loses nothing; bfloat16 to its bits."""
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    bits = values.astype("<f4").view("<u4")
    if np.array_equal(halves, values):
        return halves
    return values if (bits & 0xFFFF).any() else (bits >> 16).astype("<u2")


def _restored(file: TensorFile, name: str) -> Array:
    """Returns what `_stored` was given."""
    tensor = file.tensors[name]
    if tensor.dtype != _BFLOAT16:
        return file.array(name)
    bits: NDArray[np.uint16] = np.frombuffer(file.buffer, "<u2", tensor.size, tensor.start)
    return (bits.astype(np.uint32) << 16).view(np.float32).reshape(tensor.shape)
