"""LoRA on quantised GGUF weights with llama.cpp and numpy; see `model.py`."""

from pathlib import Path

from edge.backends.contract import Precision, TrainableModel


def load(base: Path, *, precision: Precision = "auto", seed: int = 0) -> TrainableModel:
    """Loads a GGUF file; see `edge.backends.llama_cpp.model.load_model`."""
    from edge.backends.llama_cpp.model import load_model

    return load_model(base, precision=precision, seed=seed)
