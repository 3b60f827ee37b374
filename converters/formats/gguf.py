"""llama.cpp's adapter file: GGUF with `<tensor>.lora_a` and `<tensor>.lora_b`, both ways.

The names are llama.cpp's, and rows of `lora_b` lie as those of the weight do, so the base model must be at
hand. There is one alpha for the whole adapter; how several scales and ranks fit under it is told in
`gguf_scales.py`, and what they were stands in the metadata under `tunefleet.lora`, which llama.cpp passes
over. LoRA on token embeddings and on a tied head is refused: no other format here carries it.

Source: llama.cpp, convert_lora_to_gguf.py and src/llama-adapter.cpp.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import structs

from converters.adapter import Factors, LoraAdapter
from converters.bases.contract import Base
from converters.bases.gguf_names import Naming
from converters.bases.name import HUB, is_hub_name
from converters.bases.targets import fit_faults
from converters.errors import AdapterError, BaseModelError, UnsupportedAdapter
from converters.faults import Fault
from converters.files.atomic import write_atomic
from converters.files.gguf import GgufFile, open_gguf
from converters.files.text import decode_object, decode_record
from converters.formats.about import NOTHING, About
from converters.formats.folding import Originals
from converters.formats.gguf_scales import Stored, spread, undo
from converters.formats.layout import Faults, check_writable

A, B = ".lora_a", ".lora_b"
ALPHA, OWN, ABOUT = "adapter.lora.alpha", "tunefleet.lora", "tunefleet.about"
BASE_URL = "general.base_model.0.repo_url"
_TYPES = ("F32", "F16", "BF16", "Q8_0")  # what llama.cpp's converter writes
_REFUSED = {
    "token_embd.weight": "LoRA on token embeddings",
    "output.weight": "LoRA on a head that is tied to the token embeddings",
}
_QUANTIZATION_VERSION = 2  # of ggml's block layouts; the converter writes it into every file


def load_gguf_adapter(path: Path, base: Base | None) -> LoraAdapter:
    """Reads the LoRA adapter in the GGUF file `path`.

    Args:
        path: Of the file.
        base: The base model, from GGUF or from a folder.

    Raises:
        BaseModelError: There is none, or its architecture is not known here.
        UnsupportedAdapter: It is more than LoRA on linear layers of this base; everything is named at once.
        AdapterError: It is missing or damaged.
    """
    file = open_gguf(path, AdapterError)
    if file.metadata.get("general.type") != "adapter":
        kind = file.metadata.get("general.type", "model")
        raise AdapterError(f"{path}: is a GGUF file of type {kind!r}, expected an adapter")
    base = _needed(path, base)
    naming, faults = base.naming(), Faults(str(path))
    faults.unsupported.extend(_unsupported(file, naming))
    alpha, own = _alpha(file, faults), _own(file, faults)
    pairs = _find_pairs(file, naming, faults)
    shapes = {name: (file.tensors[a].shape[1], file.tensors[b].shape[0]) for name, (a, b) in pairs.items()}
    faults.unsupported.extend(fit_faults(shapes, base.modules))
    faults.raise_any()
    adapter = {}
    for name, (tensor_a, tensor_b) in pairs.items():
        a, b = file.floats(tensor_a), naming.to_hub_rows(name, file.floats(tensor_b))
        scale = alpha / len(a) if alpha else 1.0  # as llama.cpp does
        adapter[name] = undo(Factors(a, b, scale), name, own)
    return LoraAdapter(adapter)


def read_gguf_about(path: Path) -> About:
    """Reads what the metadata of the file `path` say beside the factors.

    Raises:
        AdapterError: It is missing or damaged.
    """
    metadata = open_gguf(path, AdapterError).metadata

    def told(why: str) -> AdapterError:
        return AdapterError(f"{path}: {ABOUT} is not tunefleet's: {why}")

    noted = str(metadata.get(ABOUT, "{}"))
    decode_object(noted, told)  # what other tools said goes on as it is, but not at any depth
    about = decode_record(noted, About, told)
    url = str(metadata.get(BASE_URL, ""))
    license_name = metadata.get("general.license")
    return structs.replace(
        about,
        base=url.removeprefix(HUB) if url.startswith(HUB) else None,
        license=license_name if isinstance(license_name, str) else None,
    )


def save_gguf_adapter(adapter: LoraAdapter, path: Path, base: Base | None, about: About = NOTHING) -> None:
    """Writes `adapter` as llama.cpp's converter does; a file at `path` is replaced.

    Args:
        adapter: Has at least one module.
        path: Of the file, whose folder is made where it is missing; its name gives the adapter's.
        base: The base model, from GGUF or from a folder.
        about: The base's name, and settings of other tools to keep.

    Raises:
        BaseModelError: There is none, or its architecture is not known here.
        AdapterError: The adapter has no modules: llama.cpp has nothing to load then.
        UnsupportedAdapter: Modules that the base or llama.cpp lacks, or scales that cannot be carried
            exactly; all of a kind are named at once.
    """
    check_writable(adapter, path, "GGUF", base.modules if base else None)
    naming = _needed(path, base).naming()
    unnamed = [
        Fault(f"llama.cpp has no name for {name}", "modules that llama.cpp has no name for", name)
        for name, _ in adapter
        if name not in naming.tensors
    ]
    if unnamed:
        raise UnsupportedAdapter.of(str(path), unnamed)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        _write(part, path.stem, spread(adapter), naming, about)
        write_atomic(path, part.read_bytes())
    finally:
        part.unlink(missing_ok=True)


def _needed(path: Path, base: Base | None) -> Base:
    if base is None:
        raise BaseModelError(
            f"{path}: a GGUF adapter has llama.cpp's names and order of rows; give the base model, a .gguf "
            "file or a folder, with --base"
        )
    return base


def _unsupported(file: GgufFile, naming: Naming) -> Iterator[str]:
    architecture, kind = file.metadata.get("general.architecture"), file.metadata.get("adapter.type")
    if architecture != naming.architecture:
        yield f"is for architecture {architecture!r}, the base model is of {naming.architecture!r}"
    if kind != "lora":
        yield f"adapter.type is {kind!r}, expected 'lora'"
    if "adapter.alora.invocation_tokens" in file.metadata:
        yield "adapter.alora.invocation_tokens is set (activated LoRA)"


def _alpha(file: GgufFile, faults: Faults) -> float:
    """Reads the alpha of all modules; 0 where there is none, or none that is sound."""
    alpha = file.metadata.get(ALPHA, 0.0)
    if isinstance(alpha, float) and np.isfinite(alpha):
        return alpha
    faults.malformed.append(f"{ALPHA} is {alpha!r}, expected a finite float32")
    return 0.0


def _own(file: GgufFile, faults: Faults) -> Originals:
    try:
        return decode_record(str(file.metadata.get(OWN, "{}")), Originals, AdapterError)
    except AdapterError as cause:
        faults.malformed.append(f"{OWN} is not tunefleet's: {cause}")
        return Originals()


def _find_pairs(file: GgufFile, naming: Naming, faults: Faults) -> dict[str, tuple[str, str]]:
    """Finds the names of every module's two factors where these are sound; the rest goes into `faults`."""
    owners = {tensor: module for module, tensor in naming.tensors.items()}
    stems = sorted({name.removesuffix(A).removesuffix(B) for name in file.tensors if name.endswith((A, B))})
    others = [name for name in file.tensors if not name.endswith((A, B))]
    others += [stem for stem in stems if stem not in owners and stem not in _REFUSED]
    faults.unsupported.extend(
        f"{_REFUSED[stem]} ({stem})" for stem in stems if stem in _REFUSED.keys() - owners
    )
    kind = "tensors are no LoRA factors of a linear layer of this base"
    faults.unsupported.extend(
        Fault(f"{name} is no LoRA factor of a linear layer of this base", kind, name) for name in others
    )
    if not stems:
        faults.malformed.append("holds no LoRA factors")
    pairs = {}
    for stem in stems:
        found = list(_pair_faults(file, stem))
        faults.malformed.extend(found)
        if not found and stem in owners:
            pairs[owners[stem]] = (stem + A, stem + B)
    return dict(sorted(pairs.items()))


def _pair_faults(file: GgufFile, stem: str) -> Iterator[Fault]:
    missing = [stem + factor for factor in (A, B) if stem + factor not in file.tensors]
    if missing:
        yield Fault(f"{missing[0]} is missing", "factors are missing", missing[0])
        return
    a, b = (file.tensors[stem + factor] for factor in (A, B))
    for factor, tensor in ((A, a), (B, b)):
        if tensor.type not in _TYPES:
            text = f"{stem}{factor} is of type {tensor.type}, expected one of {', '.join(_TYPES)}"
            yield Fault(text, "factors are of a type that llama.cpp does not write")
    is_sound = len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1]
    if not is_sound and stem not in _REFUSED:  # on embeddings the factors are the other way round
        text = f"{stem}: a {a.shape} and b {b.shape} must be matrices that share one rank"
        yield Fault(text, "pairs of factors do not share one rank")


def _write(path: Path, name: str, stored: Stored, naming: Naming, about: About) -> None:
    """Writes the keys of convert_lora_to_gguf.py, in its order."""
    writer = _writer(path, naming.architecture)
    try:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_name(_title(name))
        if about.license:
            writer.add_license(about.license)
        if about.base:
            _write_base(writer, about.base)
        writer.add_float32(ALPHA, stored.alpha)
        if stored.own != Originals():
            writer.add_string(OWN, msgspec.json.encode(stored.own).decode())
        if about.noted != NOTHING:
            writer.add_string(ABOUT, msgspec.json.encode(about.noted).decode())
        writer.add_quantization_version(_QUANTIZATION_VERSION)
        for module, factors in sorted(stored.modules.items()):
            rows = np.ascontiguousarray(naming.to_file_rows(module, factors.b))
            writer.add_tensor(naming.tensors[module] + A, factors.a)
            writer.add_tensor(naming.tensors[module] + B, rows)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _writer(path: Path, architecture: str) -> Any:
    try:
        from gguf import GGUFWriter
    except ImportError as cause:
        raise AdapterError(f"{path}: gguf is needed; run: pip install 'tunefleet[llama]'") from cause
    return GGUFWriter(path, architecture)


def _write_base(writer: Any, base: str) -> None:
    """Names the base as llama.cpp's converter does; of a path, which is nobody else's, the last part."""
    owner, _, name = base.rpartition("/")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, _title(name.removesuffix(".gguf")))
    if is_hub_name(base):
        writer.add_base_model_organization(0, _title(owner))
        writer.add_base_model_repo_url(0, f"{HUB}{base}")


def _title(name: str) -> str:
    """Turns `my-adapter` into `My Adapter`, by the converter's rule."""
    from gguf import Metadata

    return str(Metadata.id_to_title(name)) or "Adapter"
