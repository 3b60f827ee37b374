"""Reads the headers of a base model, whatever it lies in."""

from pathlib import Path

from converters.bases.contract import Base
from converters.bases.folder import read_folder
from converters.bases.gguf import read_gguf


def read_base(path: Path | str) -> Base:
    """Reads the headers of the model in folder or GGUF file `path`; its weights stay on disk.

    Raises:
        BaseModelError: As `read_folder`, or of a GGUF file as `read_gguf`.
    """
    is_file = Path(path).suffix == ".gguf" and not Path(path).is_dir()
    return read_gguf(path) if is_file else read_folder(path)
