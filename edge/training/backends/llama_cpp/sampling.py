"""The choice of the next token."""

import numpy as np

from edge.training.backends.llama_cpp.native import Array


def pick_token(logits: Array, temperature: float, random: np.random.Generator) -> int:
    """The most likely token of (vocabulary,) logits, or at a temperature above 0 one by its probability."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max())
    return int(random.choice(len(powers), p=powers / powers.sum()))
