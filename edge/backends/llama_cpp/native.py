"""What this backend knows of ggml's insides, checked before it is relied upon.

llama.cpp promises nothing about what is used here: the layout of `ggml_tensor`, where an operation keeps its
parameters, and, in `context.py`, the order in which the scheduler calls its evaluation callback. It stands in
these two files alone; `open_library` compares it with the installed library, and `selftest.py` tries it out
once per version.
"""

import ctypes
import importlib
import os
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as metadata_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.errors import BackendError

OLDEST, NEWEST = (0, 3, 21), (0, 3, 36)
"""Of llama-cpp-python; CI runs the backend's tests on both. 0.3.20 holds sliding windows' keys in 16 bits."""

PACKAGE = "llama_cpp_python"
TENSOR_BYTES, OBJECT_BYTES = 336, 32
F32, F16, I32 = 0, 1, 26  # ggml_type
TYPE_NAMES = {F32: b"f32", F16: b"f16", I32: b"i32"}
NO_OPERATION = 0  # ggml_op: computes nothing
LOG_LINES = 20

Array = NDArray[np.float32]


class Tensor(ctypes.Structure):
    """`struct ggml_tensor` on 64-bit machines."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),  # elements, innermost first
        ("nb", ctypes.c_size_t * 4),  # strides in bytes
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


class _TypeTraits(ctypes.Structure):
    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_values", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float", ctypes.c_void_p),
    )


_Abort = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
_ToFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class Library(NamedTuple):
    """The loaded llama.cpp, after its checks."""

    api: Any  # llama-cpp-python's functions
    ggml: ctypes.CDLL
    ops: dict[int, str]  # operation number to name
    log: deque[str]  # what llama.cpp said last
    keep: tuple[Any, ...]  # C holds pointers to these

    @property
    def last_words(self) -> str:
        """What llama.cpp logged last, on one line."""
        return " ".join(line.strip() for line in self.log if line.strip())[-400:] or "it gives no reason"


@cache
def open_library() -> Library:
    """Loads the installed llama.cpp.

    Raises:
        BackendError: It cannot be loaded, its version was not tried, or its insides are not as this file
            describes them.
    """
    check_version(installed_version())
    api = _import_api()
    # By way of libllama: what it is linked with is found behind it. Each library lies in the package three
    # times, and opened by its own name it may be another copy than the one that computes.
    ggml = declare_ggml(ctypes.CDLL(api._lib._name))
    check_layout(ggml)
    log: deque[str] = deque(maxlen=LOG_LINES)
    keep = (_log_to(api, log), _abort_with(log))
    api.llama_log_set(keep[0], None)
    ggml.ggml_set_abort_callback(keep[1])
    api.llama_backend_init()
    return Library(api, ggml, _operations(ggml), log, keep)


def installed_version(version: Callable[[str], str] = metadata_version) -> str:
    """Returns the version of llama-cpp-python; `version` reads the metadata of a package."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return str(getattr(importlib.import_module("llama_cpp"), "__version__", "0"))


def library_files() -> list[Path]:
    """Lists the installed libraries of llama.cpp, sorted."""
    spec = find_spec("llama_cpp")
    return sorted((Path(spec.origin).parent / "lib").glob("*.*")) if spec and spec.origin else []


def check_version(found: str) -> None:
    """Compares a version of llama-cpp-python with the range that was tried.

    Raises:
        BackendError: It lies outside.
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    if not OLDEST <= numbers <= NEWEST:
        oldest, newest = (".".join(map(str, end)) for end in (OLDEST, NEWEST))
        raise BackendError(
            f"backend llama_cpp: llama-cpp-python {found} is installed, expected {oldest} to {newest}; "
            f"run pip install 'llama-cpp-python>={oldest},<={newest}'"
        )


def tensor_at(pointer: int) -> Tensor:
    """Returns the tensor that lies at `pointer`."""
    return Tensor.from_address(pointer)


def array_of(tensor: Tensor) -> Array:
    """Views a float32 tensor in host memory, outermost dimension first; shape of length 4."""
    shape, strides = tensor.ne[::-1], tensor.nb[::-1]
    num_bytes = sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True)) + 4
    flat = (ctypes.c_char * num_bytes).from_address(tensor.data)
    return np.ndarray(tuple(shape), np.float32, flat, 0, tuple(strides))


def integers_of(tensor: Tensor) -> NDArray[np.int32]:
    """Copies a contiguous int32 tensor, flat: inputs are recycled while the graph is computed."""
    count = tensor.ne[0] * tensor.ne[1]
    return np.frombuffer((ctypes.c_int32 * count).from_address(tensor.data), np.int32).copy()


def describe(pointer: int) -> str:
    """Names an operation; of unary and gated ones which one, such as SILU or SWIGLU."""
    name: bytes = open_library().ggml.ggml_op_desc(pointer)
    return name.decode()


@cache
def type_name(kind: int) -> str:
    """Names a type: `q4_K` and the like."""
    name: bytes = _traits(kind).type_name
    return name.decode()


@cache
def to_float(kind: int) -> Callable[[int, int, int], None]:
    """Finds what dequantises rows of a type: takes source address, target address, number of values."""
    function: Callable[[int, int, int], None] = _ToFloat(_traits(kind).to_float)
    return function


def declare_ggml(ggml: ctypes.CDLL) -> ctypes.CDLL:
    """Declares the functions of ggml that are called here.

    Raises:
        BackendError: Naming all that the library lacks.
    """
    signatures: Sequence[tuple[str, Any, Sequence[Any]]] = (
        ("ggml_op_name", ctypes.c_char_p, [ctypes.c_int]),
        ("ggml_op_desc", ctypes.c_char_p, [ctypes.c_void_p]),
        ("ggml_tensor_overhead", ctypes.c_size_t, []),
        ("ggml_get_type_traits", ctypes.POINTER(_TypeTraits), [ctypes.c_int]),
        ("ggml_set_abort_callback", ctypes.c_void_p, [_Abort]),
    )
    missing = [name for name, _, _ in signatures if not hasattr(ggml, name)]
    if missing:
        raise BackendError(f"backend llama_cpp: the installed ggml lacks {', '.join(missing)}")
    for name, result, arguments in signatures:
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml


def check_layout(
    ggml: ctypes.CDLL, tensor_bytes: int = TENSOR_BYTES, type_names: Mapping[int, bytes] = TYPE_NAMES
) -> None:
    """Compares the library's tensors and types with what is known here.

    Raises:
        BackendError: A tensor has another size than `tensor_bytes`, or a type another name than expected.
    """
    found = ggml.ggml_tensor_overhead() - OBJECT_BYTES
    if not found == tensor_bytes == ctypes.sizeof(Tensor):
        raise BackendError(
            f"backend llama_cpp: a tensor of the installed ggml has {found} bytes, expected {tensor_bytes}; "
            "this version of llama-cpp-python cannot be trained with"
        )
    names = {kind: ggml.ggml_get_type_traits(kind).contents.type_name for kind in type_names}
    if names != type_names:
        raise BackendError(f"backend llama_cpp: the installed ggml numbers its types otherwise: {names}")


def _import_api() -> Any:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read by libgomp: idle threads must not spin
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an abort must not wait for a debugger
    try:
        import llama_cpp.llama_cpp
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BackendError(
            f"backend llama_cpp: the installed llama-cpp-python cannot be loaded: {reason}; install it again"
        ) from error
    return llama_cpp.llama_cpp


def _operations(ggml: ctypes.CDLL) -> dict[int, str]:
    # ggml_op_name reads a table without a check of bounds; GLU is its last entry but for a private one.
    names: dict[int, str] = {}
    while "GLU" not in names.values() and len(names) < 256:
        names[len(names)] = ggml.ggml_op_name(len(names)).decode()
    return names


def _traits(kind: int) -> _TypeTraits:
    traits: _TypeTraits = open_library().ggml.ggml_get_type_traits(kind).contents
    return traits


def _log_to(api: Any, log: deque[str]) -> Any:
    def keep(level: int, text: bytes, _: Any) -> None:
        if level >= 3:  # warnings and errors
            log.append(text.decode(errors="replace"))

    return api.llama_log_callback(keep)


def _abort_with(log: deque[str]) -> Any:
    """Says why llama.cpp stops the process: of an assertion that failed, the log before it tells more."""

    def tell(message: bytes) -> None:
        words = " ".join([*(line.strip() for line in log), message.decode(errors="replace")])
        os.write(2, f"llama.cpp stops: {words}\n".encode())

    return _Abort(tell)
