"""adapter_config.json, as PEFT and mlx-lm both call the file beside the factors."""

from pathlib import Path
from typing import Any, TypeVar

from converters.errors import AdapterError
from converters.files.content import read_content
from converters.files.text import decode_object, decode_record

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

    def told(why: str) -> AdapterError:
        return AdapterError(f"{path}: is not a LoRA config of {tool}: {why}")

    content = read_content(path, lambda why: AdapterError(f"{path}: {why}"))
    whole = decode_object(content, told)
    return decode_record(content, kind, told), whole
