"""A model's weights as the proof reads them, whatever they lie in."""

from collections.abc import Mapping
from typing import Protocol

from converters.bases.contract import Base
from converters.bases.folder import FolderBase
from converters.bases.gguf import GgufBase
from converters.bases.numbers import Number
from converters.errors import BaseModelError
from converters.proof.folder_weights import FolderWeights
from converters.proof.gguf_weights import GgufWeights
from converters.proof.quant_grid import QuantGrid


class Weights(Protocol):
    """A model's weights under Hugging Face's names, in its order of rows."""

    where: str

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of all weights; those of packed ones unpacked."""
        ...

    @property
    def numbers(self) -> Mapping[str, Number] | None:
        """What llama.cpp would be told of the architecture; None where it does not have it exactly."""
        ...

    @property
    def architecture(self) -> str | None:
        """A hash of the architecture's numbers in config.json; None of a GGUF file."""
        ...

    @property
    def unnamed(self) -> list[str]:
        """What the model holds besides."""
        ...

    def grid(self, name: str, row: int, first: int, count: int) -> QuantGrid:
        """Reads `count` values of a row from column `first` on; a vector is row 0."""
        ...


def weights_of(base: Base) -> Weights:
    """Opens the weights of a model, whatever it lies in."""
    if isinstance(base, GgufBase):
        return GgufWeights(base)
    if isinstance(base, FolderBase):
        return FolderWeights(base)
    raise BaseModelError(f"{base.path}: is neither a model folder nor a GGUF file")
