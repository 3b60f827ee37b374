"""The choice of the next token, for backends whose library leaves it to them."""

from collections.abc import Callable, Collection, Sequence

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


def continue_text(
    prompt: Sequence[int],
    room: int,
    next_logits: Callable[[Sequence[int]], NDArray[np.float32]],
    pick: Callable[[NDArray[np.float32]], int],
    ends: Collection[int | None],
    on_token: Callable[[int], object],
) -> list[int]:
    """Generates a completion, token by token, without its prompt.

    Args:
        prompt: Token ids.
        room: The most tokens of the completion.
        next_logits: Computes the (vocabulary,) logits of what follows the tokens so far.
        pick: Chooses a token by its logits.
        ends: Tokens that end the completion, and are left out.
        on_token: Called with each token as it comes.
    """
    tokens = list(prompt)
    for _ in range(room):
        token = pick(next_logits(tokens))
        if token in ends:
            break
        tokens.append(token)
        on_token(token)
    return tokens[len(prompt) :]
