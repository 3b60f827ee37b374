"""Adapters as plain calls read, write and convert them: any path, any format, checked against a base."""

from pathlib import Path
from typing import Literal, NamedTuple

from msgspec import structs

from converters.adapter import LoraAdapter
from converters.bases.contract import Base
from converters.bases.name import name_base
from converters.bases.read import read_base
from converters.choices import Format
from converters.formats.about import NOTHING
from converters.formats.card import Lineage
from converters.formats.detect import TOOLS, detect_format
from converters.formats.load import load_any, read_about
from converters.formats.save import check_free, save_as


class Conversion(NamedTuple):
    """What `convert` did."""

    source: Literal["canonical", "peft", "mlx", "gguf"]  # the format that was found
    form: Format  # the format that was written
    adapter: LoraAdapter
    base: str | None  # what the base model is called in what was written: a name on the hub, or a path


def load_adapter(path: str | Path, *, base: str | Path | None = None) -> LoraAdapter:
    """Reads an adapter of PEFT, mlx-lm, llama.cpp or tunefleet, whichever is there.

    Args:
        path: A folder, or a file.
        base: Its base model, a folder or a .gguf file: names and shapes are checked against it. An adapter
            in GGUF needs it.

    Returns:
        Factors in float32 by module name: `a` of shape (rank, in_features), `b` (out_features, rank), and the
        scale that `b @ a` is multiplied by.

    Raises:
        AdapterError: There is none, or it is malformed.
        UnsupportedAdapter: It is sound, and cannot be carried over (DoRA, unknown modules).
        BaseModelError: The base model cannot be read, or is needed.

    Example:
        >>> tunefleet.load_adapter("adapter").max_rank
        8
    """
    return load_any(Path(path), _read(base))


def save_adapter(
    adapter: LoraAdapter, path: str | Path, *, form: Format = "peft", base: str | Path | None = None
) -> None:
    """Writes an adapter for another tool, to the last bit or not at all.

    Args:
        adapter: What to write.
        path: A folder that is new or empty; for gguf a file that is new.
        form: `peft`, `mlx` or `gguf`.
        base: The base model, checked against, and named in what is written; gguf needs it.

    Raises:
        AdapterError: Something is there already.
        UnsupportedAdapter: The format cannot carry it.
        BaseModelError: The base model cannot be read, or is needed.

    Example:
        >>> tunefleet.save_adapter(tunefleet.load_adapter("adapter"), "for-mlx", form="mlx")
    """
    check_free(form, Path(path))
    model = _read(base)
    save_as(form, adapter, Path(path), model, about=NOTHING.of_base(model, str(base or "")))


def convert(src: str | Path, dst: str | Path, *, to: Format, base: str | Path | None = None) -> Conversion:
    """Converts an adapter to another tool's format, to the last bit or not at all.

    What a conversion does not change is kept: the base's name, the task, the tools' settings.

    Args:
        src: An adapter of any format.
        dst: A folder that is new or empty; for gguf a file that is new.
        to: The format to write.
        base: The base model, checked against; gguf needs it.

    Raises:
        ConverterError: As `load_adapter` and `save_adapter`.

    Example:
        >>> tunefleet.convert("adapter", "mlx-adapter", to="mlx").source
        'peft'
    """
    check_free(to, Path(dst))
    model = _read(base)
    source = detect_format(Path(src))
    adapter, about = load_any(Path(src), model), read_about(Path(src))
    if model and source == "mlx" != to and not (about.peft or model.is_quantized):
        # What mlx-lm itself has named is often a quantised copy that MLX alone loads.
        about = structs.replace(about, base=name_base(model, str(base)))
    about = about.of_base(model, str(base or ""))
    lineage = Lineage(facts={"Converted from": TOOLS[source]})
    save_as(to, adapter, Path(dst), model, about=about, lineage=lineage)
    return Conversion(source, to, adapter, about.base)


def _read(base: str | Path | None) -> Base | None:
    return read_base(Path(base)) if base is not None else None
