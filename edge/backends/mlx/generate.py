"""Completions with the MLX backend; imported by `mlx.py` alone, which loads OpenBLAS before MLX."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step


def complete(
    model: Any,
    prompt: Sequence[int],
    room: int,
    sampler: Callable[[mx.array], mx.array],
    ends: Collection[int | None],
    on_token: Callable[[int], object],
) -> list[int]:
    """Generates a completion, without its prompt.

    Args:
        model: Of mlx-lm.
        prompt: Token ids.
        room: The most tokens of the completion.
        sampler: Chooses a token by its logarithms of probabilities.
        ends: Tokens that end it, and are left out.
        on_token: Called with each token as it comes.
    """
    completion: list[int] = []
    if room <= 0:
        return completion
    for token, _ in generate_step(mx.array(list(prompt)), model, max_tokens=room, sampler=sampler):
        if int(token) in ends:
            break
        completion.append(int(token))
        on_token(int(token))
    return completion
