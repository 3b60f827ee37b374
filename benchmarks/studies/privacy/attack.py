"""Membership inference: was this code trained on?

Two attackers. One says yes where training lowered a code's loss most (Yeom et al., arXiv 1709.01604). The
other has other fleets of the same kind, of which it knows who was in, and compares with these, code by code:
the likelihood ratio of two Gaussians of one width (LiRA, Carlini et al., arXiv 2112.03570, in its form for
few shadow models). Every world is attacked in turn, and the other worlds of its seed are the shadows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
FALSE_RATE = 0.01


class Found(NamedTuple):
    """How well an attacker did; one that guesses has 0.5 and 0.01."""

    auc: float  # how often a member is ranked above one that is none
    caught: float  # share of the members that are found where 1 % of the others are accused


def by_threshold(lowered: Scores, is_in: NDArray[np.bool_]) -> Found:
    """Attacks all worlds by how much each code's loss was lowered: (worlds, codes)."""
    return _judge(lowered.ravel(), is_in.ravel())


def by_likelihood(lowered: Scores, is_in: NDArray[np.bool_]) -> Found:
    """Attacks each world with the others as shadows: (worlds, codes)."""
    ratios = np.zeros_like(lowered)
    for world in range(len(lowered)):
        others = np.arange(len(lowered)) != world
        shadow, known = lowered[others], is_in[others]
        means = [_mean(shadow, known == side) for side in (True, False)]
        rest = shadow - np.where(known, means[0], means[1])
        width = max(float(np.sqrt(np.mean(rest**2))), 1e-12)
        ratios[world] = ((lowered[world] - means[1]) ** 2 - (lowered[world] - means[0]) ** 2) / (2 * width**2)
    return _judge(ratios.ravel(), is_in.ravel())


def _mean(shadow: Scores, chosen: NDArray[np.bool_]) -> Scores:
    """Averages each code over the chosen worlds; where there is none, over all chosen of all codes."""
    counts = chosen.sum(axis=0)
    own = np.where(chosen, shadow, 0.0).sum(axis=0) / np.maximum(counts, 1)
    return np.where(counts > 0, own, shadow[chosen].mean())


def _judge(scores: Scores, is_in: NDArray[np.bool_]) -> Found:
    inside, outside = scores[is_in], scores[~is_in]
    order = np.sort(outside)
    below = np.searchsorted(order, inside, "left") + np.searchsorted(order, inside, "right")
    limit = np.quantile(outside, 1 - FALSE_RATE, method="higher")
    return Found(float(below.mean() / 2 / len(outside)), float((inside > limit).mean()))


def stacked(rows: Sequence[Sequence[float]]) -> Scores:
    """Returns one row for each world."""
    return np.array(rows, np.float64)
