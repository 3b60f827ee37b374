"""What every base model on disk tells of itself, whatever it lies in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from converters.bases.gguf_names import Naming

Modules = Mapping[str, tuple[int, int]]  # name to (in_features, out_features)


class Base(Protocol):
    """A base model on disk, headers read: a folder's `FolderBase` or a GGUF file's `GgufBase`."""

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

    def naming(self) -> Naming:
        """Tells llama.cpp's side of the layers; raises `BaseModelError` where its names are not known."""

    @property
    def fingerprint(self) -> str:
        """What the model computes, as 64 hex digits; see `converters.bases.fingerprint`."""
