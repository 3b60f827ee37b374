"""Completions with the torch backend, for prompts of unlike lengths at once."""

from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria

from edge.backends.contract import OnToken, Prompts, Sampling

ROWS = 16  # prompts at a time


def complete(
    model: Any,
    prompts: Prompts,
    most_tokens: int,
    sampling: Sampling,
    ends: Collection[int | None],
    on_token: OnToken,
) -> list[list[int]]:
    """Generates completions, without their prompts.

    Args:
        model: A causal language model of transformers.
        prompts: Token ids.
        most_tokens: Of a prompt and its completion together.
        sampling: How tokens are chosen.
        ends: Tokens that end a completion, and are left out.
        on_token: Called with a prompt's index and each token of its completion as it comes.
    """
    completions: list[list[int]] = [[] for _ in prompts]
    rooms = [min(sampling.max_tokens, most_tokens - len(prompt)) for prompt in prompts]
    drawing: dict[str, Any] = {}  # greedy
    if sampling.temperature:
        drawing = {
            "do_sample": True,
            "top_k": 0,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
    stops = sorted(end for end in ends if end is not None)
    order = sorted(range(len(prompts)), key=lambda index: (rooms[index], len(prompts[index])))
    for room, group in groupby(order, key=lambda index: rooms[index]):
        indices = list(group) if room > 0 else []
        for at in range(0, len(indices), ROWS):
            chosen = indices[at : at + ROWS]

            def tell(row: int, token: int, chosen: Sequence[int] = chosen) -> None:
                completions[chosen[row]].append(token)
                on_token(chosen[row], token)

            config = GenerationConfig(
                max_new_tokens=room,
                eos_token_id=stops or None,
                pad_token_id=stops[0] if stops else 0,
                **drawing,
            )
            _continue(
                model, [prompts[index] for index in chosen], config, _Listener(len(chosen), stops, tell)
            )
    return completions


class _Listener(StoppingCriteria):  # type: ignore[misc]  # transformers is not typed
    """Hears every token as it is chosen; a row's tokens behind its end are padding."""

    def __init__(self, num_rows: int, ends: Collection[int], tell: Callable[[int, int], None]) -> None:
        self.is_over = [False] * num_rows
        self.ends, self.tell = ends, tell

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        for row, token in enumerate(input_ids[:, -1].tolist()):
            self.is_over[row] = self.is_over[row] or token in self.ends
            if not self.is_over[row]:
                self.tell(row, token)
        return torch.tensor(self.is_over, device=input_ids.device)


def _continue(
    model: Any, prompts: Sequence[Sequence[int]], config: GenerationConfig, listener: _Listener
) -> None:
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros((len(prompts), longest), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    model.generate(
        tokens.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=config,
        stopping_criteria=[listener],
    )
