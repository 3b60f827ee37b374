"""Finds a base model by what a user calls it, and reads its headers, whatever it lies in."""

import importlib
from pathlib import Path

from converters.bases.contract import Base
from converters.bases.folder import read_folder
from converters.bases.gguf import read_gguf
from converters.bases.name import is_hub_name
from converters.errors import BaseModelError
from converters.files.content import is_folder

_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # no pickled weights


def read_base(path: Path | str) -> Base:
    """Reads the headers of the model in folder or GGUF file `path`; its weights stay on disk.

    Raises:
        BaseModelError: As `read_folder`, or of a GGUF file as `read_gguf`.
    """
    is_file = Path(path).suffix == ".gguf" and not is_folder(Path(path))
    return read_gguf(path) if is_file else read_folder(path)


def find_base(base: str) -> Path:
    """Returns the local folder or GGUF file `base` itself, or a snapshot of the hub's model of that name.

    Raises:
        BaseModelError: It is neither, or the hub cannot be reached, or its client is not installed.
    """
    if not is_hub_name(base):
        return Path(base)
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise BaseModelError(
            f"{base}: no such folder, and the hub's client is not installed; run: pip install "
            "huggingface_hub, or download the model (for llama.cpp a .gguf file of it) and give its path"
        ) from error
    try:
        return Path(hub.snapshot_download(base, allow_patterns=_FILES))
    except Exception as error:  # any of the hub's, of its HTTP library's and the system's
        reason = str(error).strip().partition("\n")[0]
        raise BaseModelError(f"{base}: no such folder, and not to be had from the hub: {reason}") from error
