"""LoRA with mlx-lm, on bases in full precision or in 4 or 8 bits; see `model.py`.

On Linux the wheel of MLX links the reference BLAS. With OpenBLAS loaded before it, matrix products run 30 to
80 times faster (two x86-64 cores), and a LoRA step 12 times.
"""

import ctypes
import logging
import sys
from contextlib import suppress
from pathlib import Path

from edge.backends.contract import Precision, TrainableModel


def load(base: Path, *, precision: Precision = "auto", seed: int = 0) -> TrainableModel:
    """Loads a Hugging Face or MLX folder; see `edge.backends.mlx.model.load_model`."""
    if sys.platform == "linux" and not load_openblas():
        logging.getLogger(__name__).warning(
            "MLX lacks OpenBLAS: install libopenblas0-pthread and train 12 times faster"
        )
    from edge.backends.mlx.model import load_model

    return load_model(base, precision=precision, seed=seed)


def load_openblas() -> bool:
    """Loads OpenBLAS, where it is installed, before MLX is imported, which would bind to the other."""
    for name in ("libopenblas.so.0", "libopenblas.so"):
        with suppress(OSError):
            ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
            return True
    return False
