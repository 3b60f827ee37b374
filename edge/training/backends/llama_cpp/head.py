"""The head and the loss behind it, a few rows at a time.

llama.cpp would hold logits of all rows twice, and with a vocabulary of 32,000 a row takes 128 KB.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.training.backends.llama_cpp.native import Array
from edge.training.backends.llama_cpp.weights import Multiplier, Weight

LOGITS = 1 << 22  # held at a time: 16 MB


class HeadResult(NamedTuple):
    """Of each label, shape (labels,), and the gradient of the summed loss: (labels, hidden size)."""

    losses: Array  # cross entropy, nats
    predicted: NDArray[np.int64]  # the most likely token
    d_hidden: Array | None


def apply_head(
    hidden: Array,
    head: Weight,
    multiplier: Multiplier,
    targets: NDArray[np.int32],
    weights: Array | None = None,
) -> HeadResult:
    """Losses at labels.

    Args:
        hidden: What the head is applied to at each label, (labels, hidden size).
        head: Of shape (vocabulary, hidden size).
        multiplier: Multiplies with it.
        targets: (labels,).
        weights: Of each label in the summed loss, (labels,); None if no gradient is wanted.
    """
    losses = np.empty(len(targets), np.float32)
    predicted = np.empty(len(targets), np.int64)
    d_hidden = None if weights is None else np.empty_like(hidden)
    rows = max(1, LOGITS // head.num_out)
    for part in (slice(first, first + rows) for first in range(0, len(targets), rows)):
        logits = multiplier.forward(hidden[part], head)
        places = (np.arange(len(logits)), targets[part])
        predicted[part] = logits.argmax(-1)
        logits -= logits.max(-1, keepdims=True)
        chosen = logits[places]
        np.exp(logits, out=logits)
        sums = logits.sum(-1)
        losses[part] = np.log(sums) - chosen
        if weights is not None and d_hidden is not None:
            logits *= (weights[part] / sums)[:, None]
            logits[places] -= weights[part]
            d_hidden[part] = multiplier.backward(logits, head)
    return HeadResult(losses, predicted, d_hidden)
