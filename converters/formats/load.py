"""Reads an adapter of any format, and what its files say beside the factors."""

from pathlib import Path

from converters.adapter import LoraAdapter
from converters.bases.contract import Base
from converters.bases.targets import check_fit
from converters.formats.about import NOTHING, About
from converters.formats.canonical import load_adapter
from converters.formats.detect import detect_format
from converters.formats.gguf import load_gguf_adapter, read_gguf_about
from converters.formats.mlx import load_mlx, read_mlx_about
from converters.formats.peft import load_peft, read_peft_about


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
