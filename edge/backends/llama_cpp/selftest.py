"""Tries once per installed llama.cpp whether its insides still are as `native.py` and `gradients/` take them.

A toy of one block is gone through once. What the tape says is held against llama.cpp's own loss on the same
toy with the factors merged into its weights: two ways that share neither hooks nor gradients. The slope along
a random direction of each factor comes from differences of that loss.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from converters.errors import TunefleetError
from converters.faults import sum_up, tell
from converters.files.atomic import write_atomic
from converters.gguf_export.toy import MATRICES, VOCAB, make_weights, write_toy
from edge.backends.llama_cpp import native
from edge.backends.llama_cpp.context import Context, Model
from edge.backends.llama_cpp.gradients.forward import Forward
from edge.backends.llama_cpp.gradients.graph import record_graph
from edge.backends.llama_cpp.gradients.operations import OPERATIONS
from edge.backends.llama_cpp.gradients.route import make_route
from edge.backends.llama_cpp.gradients.tape import Lora, Operations, Tape
from edge.backends.llama_cpp.head import apply_head
from edge.backends.llama_cpp.native import Array
from edge.backends.llama_cpp.weights import Multiplier, Threads
from edge.errors import BackendError, OutOfMemory

POSITIONS = np.array([*range(7), *range(5)], np.int32)  # of two examples, packed
SEQUENCES = np.array([0] * 7 + [1] * 5, np.int32)
TOKENS = (np.arange(12, dtype=np.int32) * 29 + 3) % VOCAB
IS_OUTPUT = POSITIONS > 1
TARGETS = TOKENS[::-1][IS_OUTPUT]
RANK, SCALE = 3, np.float32(1.5)
STEP = 0.01  # of a factor's norm


class Tried(NamedTuple):
    """What the test tries: the backend as it is, unless the test itself is tested."""

    operations: Operations = OPERATIONS
    forward: type[Forward] = Forward
    loss_bound: float = 1e-4  # 5e-7 was seen
    slope_bound: float = 1e-2  # 2e-3 was seen


def run_test(tried: Tried | None = None) -> None:
    """Trains the toy, with the backend as it is unless `tried` says otherwise.

    Raises:
        BackendError: Naming all that differs.
    """
    native.open_library()  # refuses by itself what it does not know
    try:
        with TemporaryDirectory() as folder:
            faults = list(_find_faults(Path(folder), tried or Tried()))
    except OutOfMemory:
        raise
    except Exception as error:  # where insides are read wrongly, anything may go wrong
        raise BackendError(
            _message(str(error) if isinstance(error, TunefleetError) else repr(error))
        ) from error
    if faults:
        raise BackendError(_message(sum_up("", faults)), whole=_message(tell("", faults)))


def ensure_tested(
    folder: Path | None = None,
    *,
    test: Callable[[], None] = run_test,
    library_files: Callable[[], list[Path]] = native.library_files,
) -> None:
    """Runs the test, unless it was passed before with the same library, and remembers that it was passed.

    Args:
        folder: Where that is remembered; by default in the user's cache. If it cannot be, that is no error.
        test: What is run.
        library_files: Lists the files of the installed llama.cpp.

    Raises:
        BackendError: The installed llama.cpp cannot be trained with; what differs.
    """
    mark = (folder or _cache_folder()) / f"llama-cpp-{_installation(library_files())}"
    with suppress(OSError):
        if mark.exists():
            return
    test()
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(mark, b"")


def _message(found: str) -> str:
    oldest, newest = (".".join(map(str, end)) for end in (native.OLDEST, native.NEWEST))
    return (
        f"backend llama_cpp: llama-cpp-python {native.installed_version()} failed its self-test: {found}; "
        f"install another one from {oldest} to {newest}"
    )


def _find_faults(folder: Path, tried: Tried) -> Iterator[str]:
    weights = make_weights(seed=0)
    loras = _random_loras()
    loss = _train(folder, weights, loras, tried)
    expected = _own_loss(folder, weights, loras)
    if abs(loss - expected) > tried.loss_bound:
        yield f"the loss is {loss:.6f}, expected {expected:.6f}"
    random = np.random.default_rng(2)
    for name, lora in loras.items():
        for kind, factor, gradient in (("a", lora.a, lora.da), ("b", lora.b, lora.db)):
            step = _direction(random, factor, gradient)
            up, down = (
                _own_loss(folder, weights, loras | {name: _moved(lora, kind, sign * step)})
                for sign in (1, -1)
            )
            slope, found = (up - down) / 2, float((step * gradient).sum())
            if not abs(found - slope) <= tried.slope_bound * abs(slope):
                yield f"the slope of {name}'s factor {kind} is {found:.3g}, expected {slope:.3g}"


def _moved(lora: Lora, kind: str, step: Array) -> Lora:
    return lora._replace(a=lora.a + step) if kind == "a" else lora._replace(b=lora.b + step)


def _direction(random: np.random.Generator, factor: Array, gradient: Array) -> Array:
    """Returns a small random step, uphill, so that the slope is never too small to be seen."""
    direction = np.sign(gradient) + random.normal(size=factor.shape).astype(np.float32)
    direction *= np.float32(STEP * np.linalg.norm(factor) / np.linalg.norm(direction))
    return direction


def _train(folder: Path, weights: Mapping[str, Array], loras: Mapping[str, Lora], tried: Tried) -> float:
    """Computes the loss by way of the tape, which leaves its gradients in `loras`."""
    with _Toy(folder, weights) as context:
        nodes = record_graph(context, everywhere=False)
        multiplier = Multiplier(Threads(1))
        route = make_route(nodes, frozenset(loras))
        tape = Tape(nodes, route, loras, multiplier, POSITIONS, tried.operations)
        hidden = tried.forward(tape, keeps=True).run(context, TOKENS, SEQUENCES, IS_OUTPUT)
        shares = np.full(len(TARGETS), 1 / len(TARGETS), np.float32)
        found = apply_head(hidden, route.head, multiplier, TARGETS, shares)
        assert found.d_hidden is not None
        tape.backward(found.d_hidden)
        return float(found.losses.mean())


def _own_loss(folder: Path, weights: Mapping[str, Array], loras: Mapping[str, Lora]) -> float:
    """Computes llama.cpp's own loss, with the factors merged into the weights."""
    merged = dict(weights)
    for name, lora in loras.items():
        merged[f"{name}.weight"] = weights[f"{name}.weight"] + lora.scale * (lora.b @ lora.a)
    with _Toy(folder, merged) as context:
        context.decode(TOKENS, POSITIONS, SEQUENCES, IS_OUTPUT)
        logits = context.logits(len(TARGETS)).astype(np.float64)
    return float(np.mean(np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(TARGETS)), TARGETS]))


class _Toy:
    """The toy with some weights, loaded while this is entered."""

    def __init__(self, folder: Path, weights: Mapping[str, Array]) -> None:
        self.path = folder / "toy.gguf"
        write_toy(self.path, weights)

    def __enter__(self) -> Context:
        self.model = Model(self.path)
        self.context = Context(self.model, len(TOKENS), 2, 1)
        return self.context

    def __exit__(self, *_: object) -> None:
        self.context.close()
        self.model.close()


def _random_loras() -> dict[str, Lora]:
    random = np.random.default_rng(1)
    loras = {}
    for name, (num_out, num_in) in MATRICES.items():
        a = random.normal(0, num_in**-0.5, (RANK, num_in)).astype(np.float32)
        b = random.normal(0, 0.3, (num_out, RANK)).astype(np.float32)
        loras[f"blk.0.{name}"] = Lora(a, b, SCALE, np.zeros_like(a), np.zeros_like(b))
    return loras


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tunefleet"


def _installation(library_files: list[Path]) -> str:
    """Names what is installed: another llama.cpp or another version of this backend has another name."""
    files = [*library_files, *sorted(Path(__file__).parent.rglob("*.py"))]
    seen = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{native.installed_version()}-{sha256(repr(seen).encode()).hexdigest()[:16]}"
