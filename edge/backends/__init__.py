"""Training backends by name; a heavy library is imported when its backend is asked for."""

import importlib
import platform
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple, cast

from converters.bases.config import read_json
from converters.errors import BaseModelError
from converters.files.content import is_folder, is_there
from edge.backends.contract import Loader, TrainableModel
from edge.choices import BackendName as BackendName
from edge.choices import Precision
from edge.errors import BackendError, MissingExtra

BaseKind = Literal["toy", "GGUF", "packed by MLX", "folder"]
_LIBRARY = {"toy": "numpy", "torch": "torch", "mlx": "mlx_lm", "llama_cpp": "llama_cpp"}
_EXTRA = {"llama_cpp": "llama"}  # the others bear their backend's name
_READS: Mapping[BaseKind, tuple[str, ...]] = {  # the first one suits best; of a folder see `choose_backend`
    "toy": ("toy", "torch", "mlx"),
    "GGUF": ("llama_cpp",),
    "packed by MLX": ("mlx",),
    "folder": ("torch", "mlx", "toy"),
}
_TOLD: Mapping[BaseKind, str] = {
    "toy": "a toy model",
    "GGUF": "a GGUF file",
    "packed by MLX": "a folder in MLX's quantisation",
    "folder": "a folder in full precision",
}


class Choice(NamedTuple):
    """A backend, and why."""

    name: str
    why: str


class Machine(NamedTuple):
    """What a choice depends on besides the base."""

    system: str
    processor: str
    find_library: Callable[[str], object]  # gives None where it is not installed


def choose_backend(base: Path, machine: Machine | None = None) -> Choice:
    """Chooses by what the base is, and among those that read it by the machine and by what is installed.

    A GGUF file is llama.cpp's and a folder in MLX's quantisation MLX's, whatever else is installed. A folder
    in full precision goes to torch, on Apple silicon to MLX, or to the other where that is not installed.

    Raises:
        MissingExtra: What the base asks for is not installed.
    """
    kind, machine = base_kind(base), machine or _here()
    if kind != "folder":
        name = _READS[kind][0]
        _require(name, f"{base} is {_TOLD[kind]}, and backend {name}", machine)
        return Choice(name, f"for {_TOLD[kind]}")
    is_apple = machine[:2] == ("darwin", "arm64")
    first, second = ("mlx", "torch") if is_apple else ("torch", "mlx")
    told = f"for {_TOLD[kind]}" + (" on Apple silicon" if is_apple else "")
    if machine.find_library(_LIBRARY[first]):
        return Choice(first, told)
    if machine.find_library(_LIBRARY[second]):
        return Choice(second, f"{told}, as {first} is not installed")
    raise MissingExtra(f"{base} is {_TOLD[kind]}, and backend {first}", first)


def base_kind(base: Path) -> BaseKind:
    """Tells what a base is, by its name and its configuration; a folder where nothing is there yet."""
    if base.suffix == ".gguf" and not is_folder(base):
        return "GGUF"
    if is_there(base / "toy.json"):
        return "toy"
    try:
        config = read_json(base / "config.json", "a base model")
    except BaseModelError:  # `read_base` says so again, where it matters
        return "folder"
    return "packed by MLX" if config.get("quantization") else "folder"


def resolve_backend(name: str, base: Path, machine: Machine | None = None) -> Choice:
    """Returns the backend called `name` (`auto` chooses), once its library is known to be installed.

    Raises:
        BackendError: No backend bears that name, or it takes no base of that kind.
        MissingExtra: Its library is not installed.
    """
    if name == "auto":
        return choose_backend(base, machine)
    if name not in _LIBRARY:
        raise BackendError(f"backend {name!r} is unknown; expected one of auto, {', '.join(_LIBRARY)}")
    kind = base_kind(base)
    if is_there(base) and name not in _READS[kind]:
        own = _READS[kind][0]
        raise BackendError(
            f"{base}: is {_TOLD[kind]}, which backend {name} does not read; choose backend {own} or auto, or "
            "another base"
        )
    _require(name, f"backend {name}", machine or _here())
    return Choice(name, "as asked")


def _here() -> Machine:
    return Machine(sys.platform, platform.machine(), find_spec)


def _require(name: str, what: str, machine: Machine) -> None:
    if not machine.find_library(_LIBRARY[name]):
        raise MissingExtra(what, _EXTRA.get(name, name))


def load_model(name: str, base: Path, *, precision: Precision = "float32", seed: int = 0) -> TrainableModel:
    """Loads `base` with the backend called `name` (`auto` chooses).

    Raises:
        BackendError: No backend bears that name, or it takes no base of that kind.
        MissingExtra: Its library is not installed.
        BaseModelError: The base model cannot be loaded.
        OutOfMemory: It does not fit.
    """
    chosen = resolve_backend(name, base).name
    load = cast(Loader, importlib.import_module(f"edge.backends.{chosen}").load)
    return load(base, precision=precision, seed=seed)
