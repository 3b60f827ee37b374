"""Noise on what a version's updates add up to: privacy of unit `device`, added at the coordinator.

    W <- W + eta * (sum_i w_i clip(delta_i, C) + N(0, (sigma C w)^2))        w: a device's largest weight

Central DP as in DP-FedAvg (McMahan et al., arXiv 1710.06963). Leaving one device out changes the sum by at
most w C, so that the version is 1/sigma-GDP for every device in it, however many others there are. Updates
are clipped again here: what a device has done is not believed. One device may have several updates in a
buffer; its weights add up. The noise is drawn once a version, before anything else has read the sum, so that
a guard's or an optimiser's choice among multiples of it tells nothing more.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from converters.adapter import LoraAdapter
from converters.arithmetic import zeros_like
from converters.masking import train_mask
from coordinator.strategies.merges.contract import Change, Terms
from coordinator.strategies.merges.factors import FactorStep, Sum, add_increments
from coordinator.strategies.pipeline_state import Item
from edge.privacy.clipping import clip, noised
from edge.privacy.noise import Draw


class Clipped(NamedTuple):
    """An update that is no longer than the bound."""

    item: Change
    bound: float

    def load_delta(self) -> LoraAdapter:
        """See `Change`."""
        return clip(self.item.load_delta(), self.bound)

    def load_base(self) -> LoraAdapter:
        """See `Change`."""
        return self.item.load_base()


class Noise(NamedTuple):
    """What nobody sent and is added."""

    draw: Callable[[], LoraAdapter]

    def load_delta(self) -> LoraAdapter:
        """See `Change`."""
        return self.draw()

    def load_base(self) -> LoraAdapter:
        """See `Change`; nobody asks for it."""
        raise NotImplementedError


class NoisedSum(Sum, frozen=True, tag="noised-sum"):
    """Adds clipped increments and noise up; made where privacy is asked for, and never configured.

    Attributes:
        clip_norm: C.
        noise: sigma.
        shared: Factors that are merged, and so get noise.
        draw: Gives the noise's random bytes.
    """

    clip_norm: float
    noise: float
    shared: str
    draw: Draw

    def prepare(self, terms: Terms) -> FactorStep:
        """See `Merge`."""
        deviation = self.noise * self.clip_norm * largest_weight(terms.items, terms.weights)
        nothing = zeros_like(terms.state.adapter)
        mask = train_mask(nothing, "b" if self.shared == "b" else "a" if self.shared == "a" else "both", 0)
        noise = Noise(lambda: noised(nothing, deviation, self.draw, mask))
        clipped = [Clipped(item, self.clip_norm) for item in terms.items]
        step = add_increments(terms.state, [*clipped, noise], [*terms.weights, 1.0], terms.tries)
        return step._replace(norms=step.norms[:-1])


def largest_weight(items: Sequence[Change], weights: Sequence[float]) -> float:
    """Returns the most that one device weighs, all its updates together."""
    by_device: defaultdict[object, float] = defaultdict(float)
    for number, (item, weight) in enumerate(zip(items, weights, strict=True)):
        by_device[item.source.device if isinstance(item, Item) else number] += abs(weight)
    return float(np.max([*by_device.values()]))
