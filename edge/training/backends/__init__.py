"""Training backends by name; a heavy library is imported when its backend is asked for."""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, cast

from edge.errors import BackendError, MissingExtra
from edge.training.backends.base import Loader, Precision, TrainableModel

BackendName = Literal["auto", "toy", "torch", "mlx", "llama_cpp"]
_LIBRARY = {"toy": "numpy", "torch": "torch", "mlx": "mlx_lm", "llama_cpp": "llama_cpp"}
_EXTRA = {"llama_cpp": "llama"}  # the others bear their backend's name


def choose_backend(base: Path) -> str:
    """The backend that suits this machine and base: llama.cpp for GGUF, MLX on Apple silicon, else torch.

    Raises:
        MissingExtra: Neither MLX nor torch is installed.
    """
    if base.suffix == ".gguf" and not base.is_dir():
        return "llama_cpp"
    if (base / "toy.json").exists():
        return "toy"
    preferred = ["mlx", "torch"] if sys.platform == "darwin" else ["torch", "mlx"]
    for name in preferred:
        if find_spec(_LIBRARY[name]):
            return name
    raise MissingExtra("a training backend", preferred[0])


def resolve_backend(name: str, base: Path) -> str:
    """The backend called `name` (`auto` chooses), once its library is known to be installed.

    Raises:
        BackendError: No backend bears that name, or it takes no base of that kind.
        MissingExtra: Its library is not installed.
    """
    chosen = choose_backend(base) if name == "auto" else name
    if chosen not in _LIBRARY:
        raise BackendError(f"backend {name!r} is unknown; expected one of auto, {', '.join(_LIBRARY)}")
    if not find_spec(_LIBRARY[chosen]):
        raise MissingExtra(f"backend {chosen}", _EXTRA.get(chosen, chosen))
    if base.exists() and base.is_dir() == (chosen == "llama_cpp"):
        expected = "a .gguf file" if chosen == "llama_cpp" else "a folder"
        raise BackendError(f"{base}: backend {chosen} takes {expected}; choose backend auto, or another base")
    return chosen


def load_model(name: str, base: Path, *, precision: Precision = "float32", seed: int = 0) -> TrainableModel:
    """Loads `base` with the backend called `name` (`auto` chooses).

    Raises:
        BackendError: No backend bears that name.
        MissingExtra: Its library is not installed.
        BaseModelError: The base model cannot be loaded.
    """
    chosen = resolve_backend(name, base)
    load = cast(Loader, importlib.import_module(f"edge.training.backends.{chosen}").load)
    return load(base, precision=precision, seed=seed)
