"""The adapter formats by name, and which of them a path holds."""

from pathlib import Path
from typing import Literal

import msgspec

from converters.adapter import LoraAdapter
from converters.base import Modules
from converters.canonical import load_adapter
from converters.errors import AdapterError
from converters.mlx import load_mlx, save_mlx
from converters.peft import load_peft, save_peft

Format = Literal["peft", "mlx"]
_CONFIG = "adapter_config.json"  # both formats call it that


def detect_format(path: Path) -> Literal["canonical", "peft", "mlx"]:
    """The format of the adapter at `path`: a canonical file, or a folder of PEFT or mlx-lm.

    Raises:
        AdapterError: There is nothing, or nothing that is known.
    """
    if path.is_file():
        return "canonical"
    try:
        config = msgspec.json.decode((path / _CONFIG).read_bytes(), type=dict[str, msgspec.Raw])
    except OSError as cause:
        what = f"holds no {_CONFIG}" if path.exists() else "no such file or folder"
        raise AdapterError(
            f"{path}: {what}; expected an adapter of PEFT or mlx-lm, or tunefleet's file"
        ) from cause
    except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise AdapterError(f"{path / _CONFIG}: is not JSON: {cause}") from cause
    if "peft_type" in config:
        return "peft"
    if "lora_parameters" in config:
        return "mlx"
    raise AdapterError(f"{path / _CONFIG}: has neither peft_type (PEFT) nor lora_parameters (mlx-lm)")


def load_any(path: Path, modules: Modules | None = None) -> LoraAdapter:
    """Reads an adapter of any format; see `load_peft` and `load_mlx` for `modules` and what is raised."""
    kind = detect_format(path)
    if kind == "canonical":
        return load_adapter(path)
    return load_peft(path, modules) if kind == "peft" else load_mlx(path, modules)


def save_as(form: Format, adapter: LoraAdapter, folder: Path, modules: Modules | None = None) -> None:
    """Writes an adapter in the format `form`; see `save_peft` and `save_mlx`."""
    (save_peft if form == "peft" else save_mlx)(adapter, folder, modules)
