"""adapter_config.json, as PEFT and mlx-lm both call the file beside the factors."""

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from converters.errors import AdapterError

CONFIG = "adapter_config.json"

T = TypeVar("T")


def read_config(folder: Path, kind: type[T], tool: str) -> tuple[T, dict[str, Any]]:
    """Reads the config in `folder`: the part that is understood, and the whole.

    Args:
        folder: Of the adapter.
        kind: A struct of the part that is understood.
        tool: Who should have written it.

    Raises:
        AdapterError: It is missing, or none of this tool's.
    """
    path = folder / CONFIG
    try:
        content = path.read_bytes()
        return msgspec.json.decode(content, type=kind), msgspec.json.decode(content)
    except OSError as cause:
        raise AdapterError(f"{path}: cannot be read: {cause.strerror}") from cause
    except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise AdapterError(f"{path}: is not a LoRA config of {tool}: {cause}") from cause
