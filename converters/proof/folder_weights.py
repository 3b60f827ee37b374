"""The weights of a Hugging Face folder, or of one that MLX quantised, as grids.

MLX packs the codes of a row one after the other into 32-bit words, lowest bits first, and has a scale and a
bias for every group of them: value = scale · code + bias.

Source: https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.adapter import Array
from converters.bases.architectures import find_exact
from converters.bases.fingerprint import fingerprint_of
from converters.bases.folder import FolderBase
from converters.bases.numbers import FACTORS, hub_numbers, rope_factors
from converters.errors import BaseModelError
from converters.files.safetensors import FLOATING
from converters.proof.quant_grid import QuantGrid, full_precision

_PACKED = "U32"
_ROUNDING = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}


class FolderWeights:
    """See `Weights`."""

    def __init__(self, base: FolderBase) -> None:
        self.where = str(base.path)
        self._base = base
        self.numbers = hub_numbers(base)
        exact = find_exact(base.config.get("model_type"))
        self._factors = rope_factors(base.config, exact) if exact and self.numbers else None

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `Weights.shapes`."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, file in self._base.weights.items():
            tensor = file.tensors[name]
            if tensor.dtype == _PACKED:
                bits = self._setting(name, "bits")
                shapes[name] = (tensor.shape[0], tensor.shape[1] * 32 // bits)
            elif tensor.dtype in FLOATING and not self._is_part(name):
                shapes[name] = tensor.shape
        if self._factors is not None:
            shapes[FACTORS] = self._factors.shape
        return shapes

    @property
    def architecture(self) -> str | None:
        """See `Weights.architecture`."""
        return fingerprint_of(self._base.config, ())

    @property
    def unnamed(self) -> list[str]:
        """None: the names are Hugging Face's own."""
        return []

    def grid(self, name: str, row: int, first: int, count: int) -> QuantGrid:
        """Reads values; see `Weights.grid`.

        Raises:
            BaseModelError: The packed form is not MLX's affine one.
        """
        if name == FACTORS and self._factors is not None:
            return full_precision("F32", self._factors[first : first + count])
        file = self._base.weights[name]
        tensor = file.tensors[name]
        if tensor.dtype == _PACKED:
            return self._packed(name, row, slice(first, first + count))
        width = tensor.shape[-1] if len(tensor.shape) > 1 else 0
        return full_precision(tensor.dtype, file.floats(name, row * width + first, count))

    def _packed(self, name: str, row: int, columns: slice) -> QuantGrid:
        stem, bits, group = (
            name.removesuffix("weight"),
            self._setting(name, "bits"),
            self._setting(name, "group_size"),
        )
        mode = (self._base.config.get("quantization") or {}).get("mode", "affine")
        parts = [f"{stem}scales", f"{stem}biases"]
        if mode != "affine" or any(part not in self._base.weights for part in parts):
            raise BaseModelError(
                f"{self.where}: {name} is packed in mode {mode}, expected affine, with scales and biases"
            )
        step, low = (np.repeat(self._row(part, row), group)[columns] for part in parts)
        code = self._codes(name, row, bits)[columns]
        kind = self._base.weights[parts[0]].tensors[parts[0]].dtype
        return QuantGrid(f"MLX {bits} bits", low + step * code, low, step, 1 << bits, _ROUNDING[kind])

    def _row(self, name: str, row: int) -> Array:
        file = self._base.weights[name]
        width = file.tensors[name].shape[-1]
        return file.floats(name, row * width, width)

    def _codes(self, name: str, row: int, bits: int) -> Array:
        file = self._base.weights[name]
        tensor = file.tensors[name]
        num_bytes = 4 * tensor.shape[-1]
        raw: NDArray[np.uint8] = np.frombuffer(
            file.buffer, np.uint8, num_bytes, tensor.start + row * num_bytes
        )
        digits = np.unpackbits(raw, bitorder="little").reshape(-1, bits)
        return (digits @ (1 << np.arange(bits))).astype(np.float32)

    def _setting(self, name: str, key: str) -> int:
        packed: Mapping[str, Any] = self._base.config.get("quantization") or {}
        own = packed.get(name.removesuffix(".weight"))  # mixed recipes give some layers their own width
        return int((own if isinstance(own, dict) else packed).get(key, 0)) or 1

    def _is_part(self, name: str) -> bool:
        stem, _, last = name.rpartition(".")
        packed = self._base.weights.get(f"{stem}.weight")
        return (
            last in ("scales", "biases")
            and packed is not None
            and (packed.tensors[f"{stem}.weight"].dtype == _PACKED)
        )
