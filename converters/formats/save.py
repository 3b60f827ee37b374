"""Writes an adapter in the format of another tool."""

from pathlib import Path

from converters.adapter import LoraAdapter
from converters.bases.contract import Base
from converters.choices import Format
from converters.errors import AdapterError
from converters.formats.about import NOTHING, About
from converters.formats.card import Lineage, write_card
from converters.formats.gguf import save_gguf_adapter
from converters.formats.mlx import save_mlx
from converters.formats.peft import save_peft


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
