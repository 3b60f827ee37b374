"""Which adapter format a path holds."""

from pathlib import Path
from typing import Literal

from converters.errors import AdapterError
from converters.files.content import is_file, is_there, read_content
from converters.files.gguf import is_gguf
from converters.files.text import decode_object
from converters.formats import mlx, peft
from converters.formats.adapter_config import CONFIG

TOOLS = {"peft": "PEFT", "mlx": "mlx-lm", "gguf": "llama.cpp", "canonical": "tunefleet"}  # who writes which


def detect_format(path: Path) -> Literal["canonical", "peft", "mlx", "gguf"]:
    """Tells the format of the adapter at `path`: a canonical or GGUF file, or a folder of PEFT or mlx-lm.

    Raises:
        AdapterError: There is nothing, or nothing that is known.
    """
    if is_file(path):
        return "gguf" if is_gguf(path) else "canonical"
    content = read_content(path / CONFIG, lambda _: _nothing(path))
    config = decode_object(content, lambda why: AdapterError(f"{path / CONFIG}: {why}"))
    if "peft_type" in config:
        return "peft"
    if "lora_parameters" in config:
        return "mlx"
    raise AdapterError(f"{path / CONFIG}: has neither peft_type (PEFT) nor lora_parameters (mlx-lm)")


def _nothing(path: Path) -> AdapterError:
    what = f"holds no {CONFIG}" if is_there(path) else "no such file or folder"
    return AdapterError(
        f"{path}: {what}; expected an adapter of PEFT, mlx-lm or llama.cpp, or tunefleet's file"
    )


def weights_file(path: Path) -> Path:
    """Finds where the factors of the adapter at `path` lie: the file itself, or one in the folder.

    Raises:
        AdapterError: As `detect_format`.
    """
    kind = detect_format(path)
    return path / {"peft": peft.WEIGHTS, "mlx": mlx.WEIGHTS}[kind] if kind in ("peft", "mlx") else path
