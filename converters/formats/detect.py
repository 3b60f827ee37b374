"""The adapter formats by name, and which of them a path holds."""

from pathlib import Path
from typing import Literal

import msgspec

from converters.adapter import LoraAdapter
from converters.bases.folder import Base
from converters.choices import Format as Format
from converters.errors import AdapterError
from converters.files.gguf import is_gguf
from converters.formats import mlx, peft
from converters.formats.about import NOTHING, About
from converters.formats.canonical import load_adapter
from converters.formats.card import Lineage, write_card
from converters.formats.gguf import load_gguf_adapter, read_gguf_about, save_gguf_adapter
from converters.formats.layout import check_fit
from converters.formats.mlx import load_mlx, read_mlx_about, save_mlx
from converters.formats.peft import load_peft, read_peft_about, save_peft

TOOLS = {"peft": "PEFT", "mlx": "mlx-lm", "gguf": "llama.cpp", "canonical": "tunefleet"}  # who writes which
_CONFIG = "adapter_config.json"  # PEFT and mlx-lm both call it that


def detect_format(path: Path) -> Literal["canonical", "peft", "mlx", "gguf"]:
    """The format of the adapter at `path`: a canonical or GGUF file, or a folder of PEFT or mlx-lm.

    Raises:
        AdapterError: There is nothing, or nothing that is known.
    """
    if path.is_file():
        return "gguf" if is_gguf(path) else "canonical"
    try:
        config = msgspec.json.decode((path / _CONFIG).read_bytes(), type=dict[str, msgspec.Raw])
    except OSError as cause:
        what = f"holds no {_CONFIG}" if path.exists() else "no such file or folder"
        raise AdapterError(
            f"{path}: {what}; expected an adapter of PEFT, mlx-lm or llama.cpp, or tunefleet's file"
        ) from cause
    except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise AdapterError(f"{path / _CONFIG}: is not JSON: {cause}") from cause
    if "peft_type" in config:
        return "peft"
    if "lora_parameters" in config:
        return "mlx"
    raise AdapterError(f"{path / _CONFIG}: has neither peft_type (PEFT) nor lora_parameters (mlx-lm)")


def weights_file(path: Path) -> Path:
    """Where the factors of the adapter at `path` lie: the file itself, or one in the folder.

    Raises:
        AdapterError: As `detect_format`.
    """
    kind = detect_format(path)
    return path / {"peft": peft.WEIGHTS, "mlx": mlx.WEIGHTS}[kind] if kind in ("peft", "mlx") else path


def load_any(path: Path, base: Base | None = None) -> LoraAdapter:
    """Reads an adapter of any format and checks it against `base`; see `load_peft` for what is raised.

    Raises:
        BaseModelError: It is in GGUF, which is not to be understood without `base`.
    """
    kind = detect_format(path)
    if kind == "gguf":
        return load_gguf_adapter(path, base)
    modules = base.modules if base else None
    if kind == "canonical":
        adapter = load_adapter(path)
        if modules is not None:
            check_fit(adapter, modules)
        return adapter
    return load_peft(path, modules) if kind == "peft" else load_mlx(path, modules)


def read_about(path: Path) -> About:
    """Reads what an adapter of any format says beside its factors; of a canonical file, nothing.

    Raises:
        AdapterError: It is missing or damaged.
    """
    kind = detect_format(path)
    if kind == "canonical":
        return NOTHING
    return {"peft": read_peft_about, "mlx": read_mlx_about, "gguf": read_gguf_about}[kind](path)


def save_as(
    form: Format,
    adapter: LoraAdapter,
    path: Path,
    base: Base | None = None,
    *,
    about: About = NOTHING,
    lineage: Lineage = Lineage(),  # noqa: B008 - it is frozen
) -> None:
    """Writes an adapter in the format `form`: a file in GGUF, a folder with a model card in the others.

    Args:
        form: The format.
        adapter: Has at least one module.
        path: Of the file or folder.
        base: The base model: checked against; GGUF needs it.
        about: The base's name, and settings to keep.
        lineage: Where the adapter came from, for the card.

    Raises:
        BaseModelError: It is to be GGUF, which is not to be written without `base`.
        AdapterError, UnsupportedAdapter: As `save_peft`, `save_mlx` and `save_gguf_adapter`.
    """
    if form == "gguf":
        save_gguf_adapter(adapter, path, base, about)
    else:
        save = save_peft if form == "peft" else save_mlx
        save(adapter, path, base.modules if base else None, about)
        write_card(form, adapter, path, about, lineage, base)


def check_free(form: Format, path: Path) -> None:
    """Checks that nothing would be overwritten: `path` is new or, as a folder, empty.

    Raises:
        AdapterError: There is something.
    """
    if form == "gguf" and path.exists():
        raise AdapterError(f"{path}: is there already; give a file that is new")
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise AdapterError(f"{path}: is not empty; give a folder that is new")
