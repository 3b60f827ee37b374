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

from edge.backends.llama_cpp.native import Array
from edge.backends.llama_cpp.weights import Multiplier, Weight

KEPT_LOGITS = 1 << 20  # 4 MB


class HeadResult(NamedTuple):
    """Of each label, shape (labels,), and the gradient of the summed loss: (labels, hidden size)."""

    losses: Array  # cross entropy, nats
    predicted: NDArray[np.int64]  # the most likely token
    d_hidden: Array | None


class _Part(NamedTuple):
    """What one part of the vocabulary says of each label, shape (labels,)."""

    highest: Array
    sums: Array  # of exp(logit - highest)
    best: NDArray[np.int64]
    chosen: Array  # the target's logit, 0 where it lies in another part
    kept: list[Array]  # the logits, if they are few


def apply_head(
    hidden: Array,
    head: Weight,
    multiplier: Multiplier,
    targets: NDArray[np.int32],
    weights: Array | None = None,
) -> HeadResult:
    """Computes the losses at labels.

    Args:
        hidden: What the head is applied to at each label, (labels, hidden size).
        head: Of shape (vocabulary, hidden size).
        multiplier: Multiplies with it.
        targets: (labels,).
        weights: Of each label in the summed loss, (labels,); None if no gradient is wanted.
    """
    ranges = multiplier.threads.split(head.num_out)
    keeps = weights is not None and len(targets) * head.num_out <= KEPT_LOGITS
    parts = multiplier.threads.map(lambda part: _look(hidden, head, multiplier, targets, part, keeps), ranges)
    highest = np.max([part.highest for part in parts], 0)
    sums = np.sum([part.sums * np.exp(part.highest - highest) for part in parts], 0)
    winner = np.argmax([part.highest for part in parts], 0)
    predicted = np.array([part.best for part in parts])[winner, np.arange(len(targets))]
    log_sums = (np.log(sums) + highest).astype(np.float32)
    losses = log_sums - np.sum([part.chosen for part in parts], 0)
    if weights is None:
        return HeadResult(losses, predicted, None)
    shares = multiplier.threads.map(
        lambda at: _turn(hidden, head, multiplier, targets, weights, log_sums, at[0], at[1].kept),
        list(zip(ranges, parts, strict=True)),
    )
    return HeadResult(losses, predicted, np.sum(shares, 0))


def _look(
    hidden: Array, head: Weight, multiplier: Multiplier, targets: NDArray[np.int32], part: range, keeps: bool
) -> _Part:
    count = len(targets)
    labels = np.arange(count)
    highest, sums = np.full(count, -np.inf, np.float32), np.zeros(count, np.float32)
    chosen, best, kept = np.zeros(count, np.float32), np.zeros(count, np.int64), []
    for first, rows in multiplier.blocks(head, part):
        logits = hidden @ rows.T
        here = logits.argmax(-1)
        largest = logits[labels, here]
        best = np.where(largest > highest, first + here, best)
        places = np.flatnonzero((targets >= first) & (targets < first + len(rows)))
        chosen[places] = logits[places, targets[places] - first]
        if keeps:
            kept.append(logits.copy())
        new = np.maximum(highest, largest)
        logits -= new[:, None]
        sums = sums * np.exp(highest - new) + np.exp(logits, out=logits).sum(-1)
        highest = new
    return _Part(highest, sums, best, chosen, kept)


def _turn(
    hidden: Array,
    head: Weight,
    multiplier: Multiplier,
    targets: NDArray[np.int32],
    weights: Array,
    log_sums: Array,
    part: range,
    kept: list[Array],
) -> Array:
    """Computes a part's share of the gradient: (labels, hidden size)."""
    share = np.zeros_like(hidden)
    for number, (first, rows) in enumerate(multiplier.blocks(head, part)):
        logits = kept[number] if kept else hidden @ rows.T
        logits -= log_sums[:, None]
        np.exp(logits, out=logits)
        logits *= weights[:, None]
        places = np.flatnonzero((targets >= first) & (targets < first + len(rows)))
        logits[places, targets[places] - first] -= weights[places]
        share += logits @ rows
    return share
