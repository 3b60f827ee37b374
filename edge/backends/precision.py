"""Which precision trains faster on a model: both are tried, for a few steps.

Products of large matrices gain by bfloat16, small ones lose by it. On two cores with AVX-512's instructions
for it LLaMA-124M trains 2.4 times as fast in it, the demo's model of 2.6 million parameters 0.8 times.
"""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from converters.adapter import LoraAdapter, initial_adapter
from edge.backends.contract import Batch, Precision, TrainableModel
from edge.errors import OutOfMemory

M = TypeVar("M", bound=TrainableModel)
MARGIN = 1.1  # bfloat16 rounds the weights: it has to be worth that
ROUNDS, BUDGET_S = 3, 4.0  # steps that are timed of each, and when no further round begins
LENGTHS = (12, 20, 36, 60)  # tokens of an example: instructions are short, and of unlike lengths
LABELLED = 0.3  # of an example, at its end
MOST_TOKENS, LEAST_TOKENS = 1024, 128  # of a step: so many that it takes a fraction of a second
PARAMETER_TOKENS = 5_000_000_000  # parameters times tokens of a step, between the two
MOST_PARAMETERS = 500_000_000  # above, loading the model twice takes longer than it is worth
BYTES_PER_PARAMETER = 5  # of the second model, in float32, and of a step


def load_faster(
    load: Callable[[Precision], M],
    free_bytes: Callable[[], float],
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[M, str]:
    """Loads a model in bfloat16 and in float32, and gives the one that trains faster, with the reason.

    Args:
        load: Loads the model in one of the two.
        free_bytes: Memory that the second model may take, asked when the first is loaded.
        clock: Seconds.
    """
    model = load("bfloat16")
    count, free = model.card.num_parameters, free_bytes()
    if count > MOST_PARAMETERS:
        return model, f"not tried: {count / 1e6:,.0f} M parameters, which float32 doubles the memory of"
    if count * BYTES_PER_PARAMETER > free:
        needed = count * BYTES_PER_PARAMETER / 1e9
        return model, f"not tried: float32 needs {needed:,.1f} GB, and {free / 1e9:,.1f} GB are free"
    try:
        other = load("float32")
        speeds = measure_speeds([model, other], clock)
    except OutOfMemory:
        return model, "tried: float32 does not fit into memory"
    told = f"tried: {speeds[0]:,.0f} tokens/s in bfloat16, {speeds[1]:,.0f} in float32"
    return (model if speeds[0] >= MARGIN * speeds[1] else other), told


def measure_speeds(
    models: Sequence[TrainableModel], clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Tokens a second that each of some forms of one model trains; they take turns, and the best step counts.

    Whatever adapter they had is gone.

    Raises:
        OutOfMemory: A step does not fit.
    """
    batch = trial_batch(models[0])
    adapter = initial_adapter(models[0].card.modules, rank=8, scale=2.0, seed=0)
    for model in models:
        model.set_adapter(adapter)
        model.begin(weight_decay=0.0, clip_norm=1.0)
        model.step([batch], 0.0)  # buffers are allocated, kernels compiled
    began, best = clock(), [float("inf")] * len(models)
    for turn in range(ROUNDS):
        if turn and clock() - began > BUDGET_S:
            break
        for index, model in enumerate(models):
            started = clock()
            model.step([batch], 0.0)
            best[index] = min(best[index], clock() - started)
    for model in models:
        model.set_adapter(LoraAdapter({}))
    return [batch.num_tokens / seconds for seconds in best]


def trial_batch(model: TrainableModel) -> Batch:
    """Makes examples of arbitrary tokens and of unlike lengths; fewer for a larger model."""
    card = model.card
    num_tokens = min(max(PARAMETER_TOKENS // max(card.num_parameters, 1), LEAST_TOKENS), MOST_TOKENS)
    lengths = np.minimum([*LENGTHS] * (num_tokens // sum(LENGTHS)), card.max_tokens)
    tokens = np.arange(lengths.sum() + 1, dtype=np.int32) * 7 % card.vocab_size
    batch = Batch(tokens[:-1], tokens[1:], np.zeros(len(tokens) - 1, np.float32), lengths)
    is_label = batch.positions >= np.repeat(lengths, lengths) * (1 - LABELLED)
    return batch._replace(weights=is_label.astype(np.float32))
