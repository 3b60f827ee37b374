"""The head and the loss behind it, a block of the vocabulary at a time.

llama.cpp would hold the logits of all labels twice, and with a vocabulary of 32,000 one label's take 128 KB.
Here a first pass over the blocks finds each label's largest logit and the sum of powers below it, a second
one the gradient. Logits are computed again for the second unless they are few: that is one more product, and
dequantises nothing twice that would not be dequantised twice anyway.

Source: the running softmax of Milakov & Gimelshein, arXiv 1805.02867.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.training.backends.llama_cpp.native import Array
from edge.training.backends.llama_cpp.weights import Multiplier, Weight

KEPT_LOGITS = 1 << 20  # 4 MB


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
    labels = np.arange(len(targets))
    highest, sums = np.full(len(targets), -np.inf, np.float32), np.zeros(len(targets), np.float32)
    chosen, predicted = np.zeros(len(targets), np.float32), np.zeros(len(targets), np.int64)
    kept: list[Array] | None = [] if len(targets) * head.num_out <= KEPT_LOGITS else None
    for first, rows in multiplier.blocks(head):
        logits = hidden @ rows.T
        best = logits.argmax(-1)
        highest_here = logits[labels, best]
        predicted = np.where(highest_here > highest, first + best, predicted)
        new = np.maximum(highest, highest_here)
        here = (targets >= first) & (targets < first + len(rows))
        chosen[here] = logits[here, targets[here] - first]
        sums *= np.exp(highest - new)
        if kept is not None and weights is not None:
            kept.append(logits.copy())
        logits -= new[:, None]
        sums += np.exp(logits, out=logits).sum(-1)
        highest = new
    log_sums = np.log(sums) + highest
    if weights is None:
        return HeadResult(log_sums - chosen, predicted, None)
    d_hidden = np.zeros_like(hidden)
    for first, rows in multiplier.blocks(head):
        logits = kept.pop(0) if kept is not None else hidden @ rows.T
        logits -= log_sums[:, None]
        np.exp(logits, out=logits)
        logits *= weights[:, None]
        places = np.flatnonzero((targets >= first) & (targets < first + len(rows)))
        logits[places, targets[places] - first] -= weights[places]
        d_hidden += logits @ rows
    return HeadResult(log_sums - chosen, predicted, d_hidden)
