"""LoRA on quantised GGUF weights with llama.cpp and numpy; see `model.py`."""

from edge.backends.llama_cpp.model import load as load
