"""The choice of the next token, for backends whose library leaves it to them."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from edge.backends.contract import Sampling


def continue_text(
    prompt: Sequence[int],
    most_tokens: int,
    next_logits: Callable[[Sequence[int]], NDArray[np.float32]],
    sampling: Sampling,
    random: np.random.Generator,
    ends: Collection[int | None],
    on_token: Callable[[int], object],
) -> list[int]:
    """Generates a completion, token by token, without its prompt.

    Args:
        prompt: Token ids.
        most_tokens: Of the prompt and its completion together.
        next_logits: Computes the (vocabulary,) logits of what follows the tokens so far.
        sampling: How a token is chosen.
        random: Draws.
        ends: Tokens that end the completion, and are left out.
        on_token: Called with each token as it comes.
    """
    tokens = list(prompt)
    for _ in range(min(sampling.max_tokens, most_tokens - len(prompt))):
        token = pick_token(next_logits(tokens), sampling, random)
        if token in ends:
            break
        tokens.append(token)
        on_token(token)
    return tokens[len(prompt) :]


def pick_token(logits: NDArray[np.float32], sampling: Sampling, random: np.random.Generator) -> int:
    """Picks a token by its (vocabulary,) logits; `top_p` is nucleus sampling (arXiv 1904.09751)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / sampling.temperature
    shares = np.exp(scaled - scaled.max())
    shares /= shares.sum()
    if sampling.top_p < 1:
        order = np.argsort(-shares, kind="stable")
        before = np.cumsum(shares[order]) - shares[order]
        shares[order[before >= sampling.top_p]] = 0
        shares /= shares.sum()
    return int(random.choice(len(shares), p=shares))
