"""A model and a context of llama.cpp, whose graph a hook walks through.

A model's graph is walked by `cb_eval`: for each node in order of computation the callback is asked whether it
wants the node's result, and is called again right after that node (and nothing later) was computed.
"""

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.errors import BaseModelError
from edge.backends.llama_cpp.native import F32, Array, Tensor, open_library, tensor_at
from edge.errors import BackendError, OutOfMemory

ABORTED = 2  # what llama_decode returns
MAX_SEQUENCES = 64
Hook = Callable[[int, bool], bool]


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
        self.api = self.library.api
        params = self.api.llama_model_default_params()
        params.vocab_only = not has_weights
        params.n_gpu_layers = 0
        params.use_extra_bufts = False  # repacked weights have no rows to read, and AMX buffers crash
        self.library.log.clear()
        self.pointer = self.api.llama_model_load_from_file(os.fsencode(path), params)
        if not self.pointer:
            raise BaseModelError(f"{path}: llama.cpp cannot load it: {self.library.last_words}")
        self.vocab = self.api.llama_model_get_vocab(self.pointer)

    @property
    def vocab_size(self) -> int:
        """Rows of the head."""
        return int(self.api.llama_vocab_n_tokens(self.vocab))

    @property
    def max_tokens(self) -> int:
        """Context length that the model was trained with."""
        return int(self.api.llama_model_n_ctx_train(self.pointer))

    @property
    def num_parameters(self) -> int:
        """Values in all weights."""
        return int(self.api.llama_model_n_params(self.pointer))

    def text_of(self, key: str) -> str | None:
        """Returns a value of the file's metadata as text; None if it is not there."""
        text = ctypes.create_string_buffer(256)
        count = self.api.llama_model_meta_val_str(self.pointer, key.encode(), text, len(text))
        return None if count < 0 else text.value.decode(errors="replace")

    def close(self) -> None:
        """Frees the model; its contexts must be closed before."""
        self.api.llama_model_free(self.pointer)


class Context:
    """A graph, its buffers and a float32 key-value cache for at most `num_tokens` tokens at a time.

    Attributes:
        hook: Called as (address of a node, asked); see the module's docstring. What it raises ends the
            computation and is raised again by `decode`.

    Raises:
        OutOfMemory: The buffers do not fit.
    """

    def __init__(self, model: Model, num_tokens: int, num_sequences: int, num_threads: int) -> None:
        self.model, self.library, self.api = model, model.library, model.api
        self.num_tokens, self.num_sequences = num_tokens, num_sequences
        self.hook: Hook = lambda pointer, is_asked: False
        self._error: BaseException | None = None
        self._callback = self.api.ggml_backend_sched_eval_callback(self._call)
        self._stop = self.api.ggml_abort_callback(lambda _: True)
        self._go_on = self.api.ggml_abort_callback()
        self._num_asked, self._num_reserved = 0, 0
        self._stop_before: int | None = None
        self._stopped: tuple[Tensor, int] | None = None
        params = self.api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = num_tokens  # one piece: gradients reach all keys
        params.n_seq_max = num_sequences
        params.n_threads = params.n_threads_batch = num_threads
        params.flash_attn_type = self.api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.type_k = params.type_v = F32
        params.kv_unified = params.swa_full = True
        params.no_perf = True
        params.cb_eval = self._callback
        self.library.log.clear()
        self.pointer = self.api.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            raise OutOfMemory(
                f"backend llama_cpp: no context of {num_tokens} tokens: {self.library.last_words}"
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
        self.api.llama_memory_clear(self.api.llama_get_memory(self.pointer), False)

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
        batch = self.api.llama_batch(
            n_tokens=count,
            token=_pointer(held[0], self.api.llama_token),
            pos=_pointer(held[1], self.api.llama_pos),
            n_seq_id=_pointer(ones, ctypes.c_int32),
            seq_id=_pointer(ids, ctypes.POINTER(self.api.llama_seq_id)),
            logits=_pointer(flags, ctypes.c_int8),
        )
        self._error, self._num_asked, self._stop_before = None, 0, stop_before
        self.library.log.clear()
        try:
            status = self.api.llama_decode(self.pointer, batch)
        finally:
            self._restore()
        if self._error is not None:
            raise self._error
        if status and not (status == ABORTED and stop_before is not None):
            kind = OutOfMemory if status == -2 else BackendError
            raise kind(f"backend llama_cpp: llama_decode gave {status}: {self.library.last_words}")

    def logits(self, count: int) -> Array:
        """Views the logits of the last `decode`, (outputs, vocabulary); they may be written to."""
        pointer = self.api.llama_get_logits(self.pointer)
        return np.ctypeslib.as_array(pointer, (count, self.model.vocab_size))

    def close(self) -> None:
        """Frees the buffers."""
        self.api.llama_free(self.pointer)

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
        self.api.llama_set_abort_callback(self.pointer, self._stop, None)
        return True

    def _restore(self) -> None:
        """Changes back what was changed in the graph, which may be used again."""
        if self._stopped is not None:
            node, rows = self._stopped
            node.ne[1] = rows
            self._stopped = None
            self.api.llama_set_abort_callback(self.pointer, self._go_on, None)


def _free_pages(values: Array) -> None:
    begin = values.ctypes.data
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, begin + values.nbytes
    size = ctypes.c_size_t(max(last // mmap.PAGESIZE * mmap.PAGESIZE - first, 0))
    ctypes.CDLL(None).madvise(ctypes.c_void_p(first), size, mmap.MADV_DONTNEED)


def _pointer(values: NDArray[Any], kind: Any) -> Any:
    return values.ctypes.data_as(ctypes.POINTER(kind))
