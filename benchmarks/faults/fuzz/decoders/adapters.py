"""Adapters of every format, with what their files say beside the factors, and each written anew."""

from collections.abc import Iterator
from pathlib import Path

from msgspec import structs

from benchmarks.faults.fuzz.decoders.folder import Replaced
from benchmarks.faults.fuzz.target import Target
from converters.adapter import LoraAdapter, initial_adapter
from converters.bases.contract import Base
from converters.bases.gguf import read_gguf
from converters.bases.targets import match_targets
from converters.choices import Format
from converters.formats.about import NOTHING, About
from converters.formats.canonical import dump_adapter, parse_adapter, save_adapter
from converters.formats.card import Lineage, card_text
from converters.formats.load import load_any, read_about
from converters.formats.save import save_as
from converters.gguf_export.toy import make_weights, write_toy

FORMS: tuple[tuple[Format, str, str], ...] = (
    ("peft", "adapter_model.safetensors", "adapter_config.json"),
    ("mlx", "adapters.safetensors", "adapter_config.json"),
)


def targets(root: Path) -> Iterator[Target]:
    """Lists the readers of adapters; files lie below `root`."""
    model = root / "toy.gguf"
    write_toy(model, make_weights(0))
    base = read_gguf(model)
    modules = match_targets(base.modules, ["q_proj", "v_proj"])
    adapter = initial_adapter(modules, rank=2, scale=2.0, seed=0)
    adapter = LoraAdapter({name: f._replace(b=f.b + 1) for name, f in adapter})
    about = structs.replace(NOTHING, base="someone/model")
    yield Target("adapter/canonical", "tensors", [dump_adapter(adapter)], parse_adapter, 20)
    for form, weights, config in FORMS:
        folder = root / form
        save_as(form, adapter, folder, base, about=about)
        for name, kind, weight in ((weights, "tensors", 4), (config, "json", 8), ("README.md", "bytes", 1)):
            seed = (folder / name).read_bytes()
            decode = Replaced(folder, name, lambda path: _read(path, base))
            yield Target(f"adapter/{form}/{name}", kind, [seed], decode, weight)  # type: ignore[arg-type]
    (root / "gguf").mkdir()
    save_as("gguf", adapter, root / "gguf" / "adapter.gguf", base, about=about)
    seed = (root / "gguf" / "adapter.gguf").read_bytes()
    decode = Replaced(root / "gguf", "adapter.gguf", lambda path: _read(path / "adapter.gguf", base))
    yield Target("adapter/gguf", "gguf", [seed], decode, 6)
    save_adapter(adapter, root / "canonical.safetensors")


def _read(path: Path, base: Base) -> None:
    adapter = load_any(path, base)
    about = read_about(path)
    _tell(adapter, about, base)


def _tell(adapter: LoraAdapter, about: About, base: Base) -> None:
    card_text("peft", adapter, about.of_base(base), Lineage(), base)
