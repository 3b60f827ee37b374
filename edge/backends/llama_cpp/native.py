"""Everything this backend knows of llama.cpp's insides, checked before it is relied upon.

llama.cpp promises nothing about what is used here: the layout of `ggml_tensor`, the order in which the
scheduler calls its evaluation callback, where an operation keeps its parameters. All of it stands in this
file, which is longer than others for that; `open_library` compares it with the installed library, and
`selftest.py` tries it out once per version.

A model's graph is walked by `cb_eval`: for each node in order of computation the callback is asked whether it
wants the node's result, and is called again right after that node (and nothing later) was computed.
"""

import ctypes
import mmap
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before libgomp: idle threads must not spin beside BLAS
os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an abort must not wait for a debugger

import numpy as np
from numpy.typing import NDArray

from converters.errors import BaseModelError
from edge.errors import BackendError, OutOfMemory

try:
    import llama_cpp.llama_cpp
except (ImportError, OSError, RuntimeError, AttributeError) as error:
    reason = str(error).strip().partition("\n")[0]
    raise BackendError(
        f"backend llama_cpp: the installed llama-cpp-python cannot be loaded: {reason}; install it again"
    ) from error

OLDEST, NEWEST = (0, 3, 21), (0, 3, 36)
"""Of llama-cpp-python; CI runs the backend's tests on both. 0.3.20 holds sliding windows' keys in 16 bits."""

PACKAGE = "llama_cpp_python"
TENSOR_BYTES, OBJECT_BYTES = 336, 32
F32, F16, I32 = 0, 1, 26  # ggml_type
NO_OPERATION = 0  # ggml_op: computes nothing
ABORTED = 2  # what llama_decode returns
MAX_SEQUENCES = 64
LOG_LINES = 20

api: Any = llama_cpp.llama_cpp
_FOLDER = Path(api.__file__).parent / "lib"
Array = NDArray[np.float32]
Hook = Callable[[int, bool], bool]


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
    """The loaded ggml, after its checks."""

    ggml: ctypes.CDLL
    ops: dict[int, str]  # operation number to name
    log: deque[str]  # what llama.cpp said last
    keep: tuple[Any, ...]  # C holds pointers to these


@cache
def open_library() -> Library:
    """The installed llama.cpp.

    Raises:
        BackendError: Its version was not tried, or its insides are not as this file describes them.
    """
    check_version()
    ggml = _load_ggml()
    _check_layout(ggml)
    log: deque[str] = deque(maxlen=LOG_LINES)
    keep = (_log_to(log), _abort_with(log))
    api.llama_log_set(keep[0], None)
    ggml.ggml_set_abort_callback(keep[1])
    api.llama_backend_init()
    return Library(ggml, _operations(ggml), log, keep)


def installed_version() -> str:
    """Of llama-cpp-python."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return str(getattr(__import__("llama_cpp"), "__version__", "0"))


def library_files() -> list[Path]:
    """The installed libraries of llama.cpp, sorted."""
    return sorted(_FOLDER.glob("*.*"))


def check_version() -> None:
    """Compares the installed llama-cpp-python with the range that was tried.

    Raises:
        BackendError: It lies outside.
    """
    found = installed_version()
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    if not OLDEST <= numbers <= NEWEST:
        oldest, newest = (".".join(map(str, end)) for end in (OLDEST, NEWEST))
        raise BackendError(
            f"backend llama_cpp: llama-cpp-python {found} is installed, expected {oldest} to {newest}; "
            f"run pip install 'llama-cpp-python>={oldest},<={newest}'"
        )


def tensor_at(pointer: int) -> Tensor:
    """The tensor that lies at `pointer`."""
    return Tensor.from_address(pointer)


def array_of(tensor: Tensor) -> Array:
    """A view of a float32 tensor in host memory, outermost dimension first; shape of length 4."""
    shape, strides = tensor.ne[::-1], tensor.nb[::-1]
    num_bytes = sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True)) + 4
    flat = (ctypes.c_char * num_bytes).from_address(tensor.data)
    return np.ndarray(tuple(shape), np.float32, flat, 0, tuple(strides))


def integers_of(tensor: Tensor) -> NDArray[np.int32]:
    """A copy of a contiguous int32 tensor, flat: inputs are recycled while the graph is computed."""
    count = tensor.ne[0] * tensor.ne[1]
    return np.frombuffer((ctypes.c_int32 * count).from_address(tensor.data), np.int32).copy()


def describe(pointer: int) -> str:
    """The operation's name; for unary and gated operations which one, such as SILU or SWIGLU."""
    name: bytes = open_library().ggml.ggml_op_desc(pointer)
    return name.decode()


@cache
def type_name(kind: int) -> str:
    """`q4_K` and the like."""
    name: bytes = _traits(kind).type_name
    return name.decode()


@cache
def to_float(kind: int) -> Callable[[int, int, int], None]:
    """The function that dequantises rows of a type: (source address, target address, number of values)."""
    function: Callable[[int, int, int], None] = _ToFloat(_traits(kind).to_float)
    return function


class Model:
    """A loaded GGUF model; its weights stay mapped from the file.

    Args:
        path: The file.
        has_weights: Whether they are loaded too; without, there is the vocabulary and the metadata.

    Raises:
        BaseModelError: llama.cpp cannot load the file, with its own words.
    """

    def __init__(self, path: Path, *, has_weights: bool = True) -> None:
        self.library = open_library()
        params = api.llama_model_default_params()
        params.vocab_only = not has_weights
        params.n_gpu_layers = 0
        params.use_extra_bufts = False  # repacked weights have no rows to read, and AMX buffers crash
        self.library.log.clear()
        self.pointer = api.llama_model_load_from_file(os.fsencode(path), params)
        if not self.pointer:
            raise BaseModelError(f"{path}: llama.cpp cannot load it: {last_words(self.library)}")
        self.vocab = api.llama_model_get_vocab(self.pointer)

    @property
    def vocab_size(self) -> int:
        """Rows of the head."""
        return int(api.llama_vocab_n_tokens(self.vocab))

    @property
    def max_tokens(self) -> int:
        """Context length that the model was trained with."""
        return int(api.llama_model_n_ctx_train(self.pointer))

    @property
    def num_parameters(self) -> int:
        """Values in all weights."""
        return int(api.llama_model_n_params(self.pointer))

    def text_of(self, key: str) -> str | None:
        """A value of the file's metadata as text; None if it is not there."""
        text = ctypes.create_string_buffer(256)
        count = api.llama_model_meta_val_str(self.pointer, key.encode(), text, len(text))
        return None if count < 0 else text.value.decode(errors="replace")

    def close(self) -> None:
        """Frees the model; its contexts must be closed before."""
        api.llama_model_free(self.pointer)


class Context:
    """A graph, its buffers and a float32 key-value cache for at most `num_tokens` tokens at a time.

    Attributes:
        hook: Called as (address of a node, asked); see the module's docstring. What it raises ends the
            computation and is raised again by `decode`.

    Raises:
        OutOfMemory: The buffers do not fit.
    """

    def __init__(self, model: Model, num_tokens: int, num_sequences: int, num_threads: int) -> None:
        self.model = model
        self.num_tokens, self.num_sequences = num_tokens, num_sequences
        self.hook: Hook = lambda pointer, is_asked: False
        self._error: BaseException | None = None
        self._callback = api.ggml_backend_sched_eval_callback(self._call)
        self._stop = api.ggml_abort_callback(lambda _: True)
        self._go_on = api.ggml_abort_callback()
        self._num_asked, self._num_reserved = 0, 0
        self._stop_before: int | None = None
        self._stopped: tuple[Tensor, int] | None = None
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = num_tokens  # one piece: gradients reach all keys
        params.n_seq_max = num_sequences
        params.n_threads = params.n_threads_batch = num_threads
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.type_k = params.type_v = F32
        params.kv_unified = params.swa_full = True
        params.no_perf = True
        params.cb_eval = self._callback
        model.library.log.clear()
        self.pointer = api.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            raise OutOfMemory(
                f"backend llama_cpp: no context of {num_tokens} tokens: {last_words(model.library)}"
            )

    def reserve(self, num_outputs: int) -> None:
        """Makes llama.cpp grow its buffer of logits now, and hands the memory back.

        It fills the buffer with zeros whenever it grows, though nothing is ever written there if passes end
        before the head: 33 MB for 256 labels and a vocabulary of 32,000. Forgets all tokens.
        """
        if num_outputs <= self._num_reserved:
            return
        self._num_reserved = min(-(-num_outputs // MAX_SEQUENCES) * MAX_SEQUENCES, self.num_tokens)
        self.clear()
        zeros = np.zeros(self._num_reserved, np.int32)
        places = np.arange(self._num_reserved, dtype=np.int32)
        self.decode(zeros, places, zeros, np.ones(self._num_reserved, np.bool_), stop_before=0)
        self.clear()
        if sys.platform in ("linux", "android"):
            _free_pages(self.logits(self._num_reserved))

    def clear(self) -> None:
        """Forgets all tokens."""
        api.llama_memory_clear(api.llama_get_memory(self.pointer), False)

    def decode(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        is_output: NDArray[np.bool_],
        stop_before: int | None = None,
    ) -> None:
        """Computes the graph for new tokens; all arrays are of shape (tokens,).

        Args:
            tokens: Token ids.
            positions: Each token's place in its sequence.
            sequences: Which sequence each token belongs to; none sees another.
            is_output: Where logits are wanted.
            stop_before: Index of a node that is not computed, nor what follows; no logits are written then.

        Raises:
            BackendError: llama.cpp refused, with its own words.
            OutOfMemory: A buffer could not be had.
        """
        count = len(tokens)
        held = [np.ascontiguousarray(values, np.int32) for values in (tokens, positions, sequences)]
        ones, flags = np.ones(count, np.int32), np.ascontiguousarray(is_output, np.int8)
        ids = held[2].ctypes.data + 4 * np.arange(count, dtype=np.uint64)
        batch = api.llama_batch(
            n_tokens=count,
            token=_pointer(held[0], api.llama_token),
            pos=_pointer(held[1], api.llama_pos),
            n_seq_id=_pointer(ones, ctypes.c_int32),
            seq_id=_pointer(ids, ctypes.POINTER(api.llama_seq_id)),
            logits=_pointer(flags, ctypes.c_int8),
        )
        self._error, self._num_asked, self._stop_before = None, 0, stop_before
        self.model.library.log.clear()
        try:
            status = api.llama_decode(self.pointer, batch)
        finally:
            self._restore()
        if self._error is not None:
            raise self._error
        if status and not (status == ABORTED and stop_before is not None):
            kind = OutOfMemory if status == -2 else BackendError
            raise kind(f"backend llama_cpp: llama_decode gave {status}: {last_words(self.model.library)}")

    def logits(self, count: int) -> Array:
        """The logits of the last `decode`: (outputs, vocabulary), a view that may be written to."""
        pointer = api.llama_get_logits(self.pointer)
        return np.ctypeslib.as_array(pointer, (count, self.model.vocab_size))

    def forget(self, sequence: int) -> None:
        """Frees the tokens of one sequence."""
        api.llama_memory_seq_rm(api.llama_get_memory(self.pointer), sequence, -1, -1)

    def close(self) -> None:
        """Frees the buffers."""
        api.llama_free(self.pointer)

    def _call(self, pointer: int, is_asked: bool, _: Any) -> bool:
        try:
            if is_asked:
                self._num_asked += 1
                if self._num_asked - 1 == self._stop_before:
                    return self._stop_at(pointer)
            return self._error is None and self.hook(pointer, is_asked)
        except BaseException as error:  # C cannot carry it: `decode` raises it again
            self._error = self._error or error
            return False

    def _stop_at(self, pointer: int) -> bool:
        # An abort is heeded after a node only, and not after one without an operation: this one gets no rows.
        node = tensor_at(pointer)
        self._stopped = (node, node.ne[1])
        node.ne[1] = 0
        api.llama_set_abort_callback(self.pointer, self._stop, None)
        return True

    def _restore(self) -> None:
        """The graph may be used again, so what was changed in it is changed back."""
        if self._stopped is not None:
            node, rows = self._stopped
            node.ne[1] = rows
            self._stopped = None
            api.llama_set_abort_callback(self.pointer, self._go_on, None)


def last_words(library: Library) -> str:
    """What llama.cpp logged last, on one line."""
    return " ".join(line.strip() for line in library.log if line.strip())[-400:] or "it gives no reason"


def _free_pages(values: Array) -> None:
    begin = values.ctypes.data
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, begin + values.nbytes
    size = ctypes.c_size_t(max(last // mmap.PAGESIZE * mmap.PAGESIZE - first, 0))
    ctypes.CDLL(None).madvise(ctypes.c_void_p(first), size, mmap.MADV_DONTNEED)


def _pointer(values: NDArray[Any], kind: Any) -> Any:
    return values.ctypes.data_as(ctypes.POINTER(kind))


def _load_ggml() -> ctypes.CDLL:
    # By way of libllama: what it is linked with is found behind it. Each library lies in the package three
    # times, and opened by its own name it may be another copy than the one that computes.
    ggml = ctypes.CDLL(api._lib._name)
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


def _check_layout(ggml: ctypes.CDLL) -> None:
    found = ggml.ggml_tensor_overhead()
    if not found - OBJECT_BYTES == TENSOR_BYTES == ctypes.sizeof(Tensor):
        raise BackendError(
            f"backend llama_cpp: a tensor of the installed ggml has {found - OBJECT_BYTES} bytes, "
            f"expected {TENSOR_BYTES}; this version of llama-cpp-python cannot be trained with"
        )
    names = {kind: ggml.ggml_get_type_traits(kind).contents.type_name for kind in (F32, F16, I32)}
    if names != {F32: b"f32", F16: b"f16", I32: b"i32"}:
        raise BackendError(f"backend llama_cpp: the installed ggml numbers its types otherwise: {names}")


def _operations(ggml: ctypes.CDLL) -> dict[int, str]:
    # ggml_op_name reads a table without a check of bounds; GLU is its last entry but for a private one.
    names: dict[int, str] = {}
    while "GLU" not in names.values() and len(names) < 256:
        names[len(names)] = ggml.ggml_op_name(len(names)).decode()
    return names


def _traits(kind: int) -> _TypeTraits:
    traits: _TypeTraits = open_library().ggml.ggml_get_type_traits(kind).contents
    return traits


def _log_to(log: deque[str]) -> Any:
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
