"""A base model by its hub name: fetched by the ecosystem's own loader, where there is a network."""

import importlib
import re
from pathlib import Path

from converters.errors import BaseModelError
from edge.errors import MissingExtra

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # no pickled weights


def find_base(base: str) -> Path:
    """The local folder or GGUF file `base` itself, or a snapshot of the hub's model of that name.

    Raises:
        BaseModelError: It is neither, or the hub cannot be reached.
        MissingExtra: It is a hub name, and no backend is installed that brings the hub's client.
    """
    if Path(base).exists() or base.endswith(".gguf") or not _NAME.fullmatch(base):
        return Path(base)
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise MissingExtra(f"{base} is no local folder, and the hub's client", "torch") from error
    try:
        return Path(hub.snapshot_download(base, allow_patterns=_FILES))
    except Exception as error:  # any of the hub's, of its HTTP library's and the system's
        reason = str(error).strip().partition("\n")[0]
        raise BaseModelError(f"{base}: no such folder, and not to be had from the hub: {reason}") from error
