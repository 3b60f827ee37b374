"""A GGUF file's weights as grids, in Hugging Face's names and order of rows.

A block's range is found without knowing its layout: with all codes set to the lowest, and to the highest, the
`gguf` package dequantises it to the two ends.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from converters.adapter import Array
from converters.bases.architectures import hub_order
from converters.bases.gguf import FULL_PRECISION, GgufBase
from converters.bases.numbers import FACTORS, Number, file_numbers
from converters.errors import BaseModelError
from converters.proof.quant_grid import QuantGrid, full_precision


class Codes(NamedTuple):
    """Where a type keeps its codes."""

    levels: int
    first: int  # byte of a block
    end: int
    lowest: int = 0x00  # a byte of nothing but lowest codes
    highest: int = 0xFF


_ROUNDING = 2.0**-12  # steps are stored as float16, and codes count from the middle of their range

# Source: ggml/src/ggml-common.h
TYPES: Mapping[str, Codes] = {
    "Q4_0": Codes(16, 2, 18),
    "Q4_1": Codes(16, 4, 20),
    "Q5_0": Codes(32, 2, 22),
    "Q5_1": Codes(32, 4, 24),
    "Q8_0": Codes(256, 2, 34, 0x80, 0x7F),
    "Q2_K": Codes(4, 16, 80),
    "Q3_K": Codes(8, 0, 96),
    "Q4_K": Codes(16, 16, 144),
    "Q5_K": Codes(32, 16, 176),
    "Q6_K": Codes(64, 0, 192),
}


class GgufWeights:
    """See `Weights`."""

    def __init__(self, base: GgufBase) -> None:
        self.where = str(base.path)
        self._base = base
        self._names = dict(base.names)
        if FACTORS in base.file.tensors:
            self._names[FACTORS] = FACTORS

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `Weights.shapes`."""
        return {name: self._base.file.tensors[there].shape for name, there in self._names.items()}

    @cached_property
    def numbers(self) -> Mapping[str, Number] | None:
        """See `Weights.numbers`."""
        return file_numbers(self._base)

    @property
    def architecture(self) -> str | None:
        """See `Weights.architecture`."""
        return None

    @property
    def unnamed(self) -> list[str]:
        """Tensors that have no name in Hugging Face's words."""
        return sorted(set(self._base.file.tensors) - set(self._names.values()))

    def grid(self, name: str, row: int, first: int, count: int) -> QuantGrid:
        """Reads values; see `Weights.grid`.

        Raises:
            BaseModelError: The tensor is of a type whose codes are not known here.
        """
        tensor = self._base.file.tensors[self._names[name]]
        if tensor.type in FULL_PRECISION:
            return full_precision(tensor.type, self._floats(name, row)[first : first + count])
        if tensor.type not in TYPES:
            raise BaseModelError(
                f"{self.where}: {self._names[name]} is of type {tensor.type}, expected one of "
                f"{', '.join([*FULL_PRECISION, *TYPES])} to tell what it was made from; give --fingerprint"
            )
        values, low, high = (
            ends[first : first + count] for ends in self._dequantised(self._names[name], self._row(name, row))
        )
        levels = TYPES[tensor.type].levels
        return QuantGrid(tensor.type, values, low, (high - low) / np.float32(levels - 1), levels, _ROUNDING)

    def _floats(self, name: str, row: int) -> Array:
        tensor = self._names[name]
        if len(self._base.file.tensors[tensor].shape) > 1:
            rows: Array = self._base.hub_floats(tensor, row, 1)
            return rows.reshape(-1)
        values: Array = self._base.hub_floats(tensor)
        is_shifted = self._base.architecture.shifts_norms and name.endswith("norm.weight")
        return values - 1 if is_shifted else values

    def _row(self, name: str, row: int) -> int:
        heads = self._base.heads.get(self._names[name])
        num_rows = self._base.file.tensors[self._names[name]].shape[0]
        return row if heads is None else int(hub_order(num_rows, heads)[row])

    def _dequantised(self, tensor: str, row: int) -> list[Array]:
        """Reads one row as it is, with lowest and with highest codes; each of shape (columns,)."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        held = self._base.file.tensors[tensor]
        codes, kind = TYPES[held.type], GGMLQuantizationType[held.type]
        row_bytes = held.num_bytes // held.shape[0]
        raw: NDArray[np.uint8] = np.frombuffer(
            self._base.file.buffer, np.uint8, row_bytes, held.start + row * row_bytes
        )
        blocks = raw.reshape(-1, GGML_QUANT_SIZES[kind][1])
        found = []
        for byte in (None, codes.lowest, codes.highest):
            changed = blocks.copy()
            if byte is not None:
                changed[:, codes.first : codes.end] = byte
            with np.errstate(all="ignore"):  # a damaged scale may be infinite or no number
                found.append(np.asarray(dequantize(changed, kind), np.float32).ravel())
        return found
