"""The choice of the next token, for backends whose library leaves it to them."""

import numpy as np
from numpy.typing import NDArray


def pick_token(
    logits: NDArray[np.float32], temperature: float, top_p: float, random: np.random.Generator
) -> int:
    """Picks a token by its (vocabulary,) logits.

    Args:
        logits: Of all tokens.
        temperature: 0 takes the most likely token; above 0 each by its probability at this temperature.
        top_p: Only the most likely tokens that together reach this probability may come (nucleus sampling,
            arXiv 1904.09751); 1 leaves all.
        random: Draws.
    """
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    shares = np.exp(scaled - scaled.max())
    shares /= shares.sum()
    if top_p < 1:
        order = np.argsort(-shares, kind="stable")
        before = np.cumsum(shares[order]) - shares[order]
        shares[order[before >= top_p]] = 0
        shares /= shares.sum()
    return int(random.choice(len(shares), p=shares))
