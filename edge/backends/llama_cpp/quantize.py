"""Writes a GGUF model in fewer bits, by llama.cpp itself.

In a process of its own, because llama.cpp stops the process where it fails.

Run as: python -m edge.backends.llama_cpp.quantize SOURCE TARGET q4_K_M
"""

import os
import sys
from pathlib import Path

from converters.errors import BaseModelError, TunefleetError
from edge.backends.llama_cpp.native import open_library

FILE_TYPES = {  # llama_ftype
    "f16": 1, "q4_0": 2, "q8_0": 7, "q4_K_S": 14, "q4_K_M": 15, "q5_K_M": 17, "q6_K": 18, "bf16": 32,
}  # fmt: skip


def quantize(source: Path, target: Path, kind: str) -> None:
    """Writes `target` from a float32 or float16 GGUF.

    Raises:
        BaseModelError: `kind` is not one of `FILE_TYPES`, or llama.cpp refused.
    """
    if kind not in FILE_TYPES:
        raise BaseModelError(f"{target}: quantisation {kind!r}, expected one of {', '.join(FILE_TYPES)}")
    library = open_library()
    params = library.api.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[kind]
    if library.api.llama_model_quantize(os.fsencode(source), os.fsencode(target), params):
        raise BaseModelError(f"{source}: llama.cpp cannot quantise it: {library.last_words}")


if __name__ == "__main__":
    try:
        quantize(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    except TunefleetError as error:
        sys.exit(f"tunefleet: {error}")
