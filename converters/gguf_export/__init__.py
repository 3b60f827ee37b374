"""A base model's folder as a GGUF file."""
