"""LoRA with transformers and peft, on the GPU where there is one; see `model.py`."""

import os
from pathlib import Path

from edge.backends.contract import Precision, TrainableModel

_ENVIRONMENT = {  # read when torch is imported
    "OMP_WAIT_POLICY": "passive",  # idle threads must not spin beside others
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",  # of 1,024; see `forward.Forward.fills_up`
    "LRU_CACHE_CAPACITY": "256",
}


def load(base: Path, *, precision: Precision = "auto", seed: int = 0) -> TrainableModel:
    """Loads a Hugging Face folder; see `edge.backends.torch.model.load_model`."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from edge.backends.torch.model import load_model

    return load_model(base, precision=precision, seed=seed)
