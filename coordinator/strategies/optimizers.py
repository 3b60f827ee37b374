"""What the server makes of a merged step: nothing, FedAvgM or FedAdam.

none     x <- x + L eta D
fedavgm  x <- x + L (eta D + beta (x - x')), x' being the adapter before (Hsu et al., arXiv 1909.06335)
fedadam  x <- x + L eta m / (sqrt(v) + adaptivity), m and v the running means of D and D^2 (Reddi et al.,
         arXiv 2003.00295, Algorithm 2: no bias correction, and v begins at adaptivity^2)

D is the merged step at a server learning rate of 1, and L the length that the guard chose. Ours: L shortens
the momentum with the step, or a momentum that leads uphill could not be made small; the momentum is what was
really gone (with a constant eta and L = 1 that is the paper's); where the guard refuses even the shortest
step, the momentum starts anew (`restart`, after O'Donoghue & Candes 2015), or what leads uphill would be
tried for ever.

FedAvgM in space `product` keeps x - x' as a factored true change of twice the fleet's rank and adds it as a
merge adds up updates. FedAdam squares coordinates, which a product has not: versions are re-balanced there,
and the first of them moves every row of A though the product hardly changes. So it is for space `factors`.
Every coordinate goes up to about eta at a version, so that eta is 0.001 to 0.01 and not 1.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from converters.adapter import Array, Factors, LoraAdapter
from converters.arithmetic import add, map_entries, norm, subtract, zeros_like
from converters.lowrank import adapter_norm
from coordinator.strategies.contract import State
from coordinator.strategies.guard import Step
from coordinator.strategies.merges.contract import Loaded, Merge, Merged, Terms, Total
from coordinator.strategies.merges.product import Product, add_products
from coordinator.strategies.pipeline_state import PipelineState
from coordinator.strategies.record import Positive, Record, Share

MOMENTUM = {"factors": "momentum", "product": "momentum-product"}  # shapes differ: a switch of space restarts
MEAN, SQUARE = "adam-mean", "adam-square"


class Run(NamedTuple):
    """What an optimiser works with in one version."""

    pipeline: PipelineState  # after its stages
    merge: Merge
    longest: float  # merged steps, the guard's first
    tries: int  # how many steps may be asked for
    server_lr: float  # eta
    remainder_rank: int  # of what space `product` carries

    def merged(self, rate: float) -> Merged:
        """Merges the updates that count, each multiplied by `rate`, too."""
        chosen = self.pipeline.chosen
        weights = [rate * item.weight for item in chosen]
        terms = Terms(self.pipeline.state, chosen, weights, self.remainder_rank, self.tries)
        return self.merge.prepare(terms)


class Optimizer(Record, frozen=True):
    """What the server makes of a merged step; a subclass names its kind as `tag`."""

    def prepare(self, run: Run) -> Callable[[float], Step]:
        """Merges, and returns what makes the step, and the moments if it is taken.

        It takes the step's share of the longest one, a power of a half.
        """
        raise NotImplementedError


class Plain(Optimizer, frozen=True, tag="none"):
    """Takes the merged step as it is."""

    def prepare(self, run: Run) -> Callable[[float], Step]:
        """See `Optimizer`."""
        merged = run.merged(run.server_lr * run.longest)
        return lambda share: Step(merged.at(share), {})


class FedAvgM(Optimizer, frozen=True, tag="fedavgm"):
    """Goes on with a part of what was gone before."""

    momentum: Share = 0.9

    def prepare(self, run: Run) -> Callable[[float], Step]:
        """See `Optimizer`."""
        merged = run.merged(run.server_lr * run.longest)
        return lambda share: self._step(run, merged.at(share), run.longest * share)

    def _step(self, run: Run, total: Total, length: float) -> Step:
        old, name = run.pipeline.state, MOMENTUM[run.merge.space]
        if name in old.moments:
            total = _pushed(run, total, length * self.momentum, old.moments[name])
        if run.merge.space == "factors":
            gone = subtract(total.adapter, old.adapter)
            step_norm = norm(gone)
        else:
            gone = LoraAdapter({name: _between(f, total.adapter.modules[name]) for name, f in old.adapter})
            step_norm = adapter_norm(gone)
        return Step(total._replace(step_norm=step_norm), {name: gone})


class FedAdam(Optimizer, frozen=True, tag="fedadam"):
    """Moves every coordinate by up to about eta, which is then 0.001 to 0.01."""

    momentum: Share = 0.9
    second_momentum: Share = 0.99
    adaptivity: Positive = 1e-3  # its tau, added to the root of the second moment

    def prepare(self, run: Run) -> Callable[[float], Step]:
        """See `Optimizer`."""
        old, total = run.pipeline.state, run.merged(1.0).at(1.0)
        nothing = zeros_like(old.adapter)
        begun = map_entries(lambda x: np.full_like(x, self.adaptivity**2), old.adapter)
        step = subtract(total.adapter, old.adapter)
        mean = map_entries(_running(self.momentum), old.moments.get(MEAN, nothing), step)
        squared = map_entries(np.square, step)
        square = map_entries(_running(self.second_momentum), old.moments.get(SQUARE, begun), squared)

        def adapted(share: float) -> Step:
            rate = np.float32(run.longest * share * run.server_lr)
            gone = map_entries(
                lambda m, v: rate * m / (np.sqrt(v) + np.float32(self.adaptivity)), mean, square
            )
            adapter, step_norm = add(old.adapter, gone), norm(gone)
            moved = total._replace(adapter=adapter, step_norm=step_norm)
            return Step(moved, {MEAN: mean, SQUARE: square})

        return adapted


def restart(moments: Mapping[str, LoraAdapter]) -> Mapping[str, LoraAdapter]:
    """Returns the moments without those that have a direction."""
    return {name: one for name, one in moments.items() if name == SQUARE}


def _pushed(run: Run, total: Total, by: float, gone: LoraAdapter) -> Total:
    """Goes on from the merged state by a share of the last step."""
    if not isinstance(run.merge, Product):
        return total._replace(adapter=map_entries(lambda x, y: x + np.float32(by) * y, total.adapter, gone))
    nothing = zeros_like(gone)
    reached = State(run.pipeline.state.version, total.adapter, total.remainder)
    rows = run.remainder_rank if run.merge.carries else 0
    # The remainder decayed when the updates were merged, and decays once a version.
    after = add_products(reached, [Loaded(nothing, gone)], [by], rows).at(1.0)
    return after._replace(norms=total.norms, dropped_norm=math.hypot(after.dropped_norm, total.dropped_norm))


def _between(old: Factors, new: Factors) -> Factors:
    """Subtracts two products: a factored one of twice their rank."""
    return Factors(np.concatenate([new.a, old.a]), np.concatenate([new.b, -old.b], axis=1), old.scale)


def _running(momentum: float) -> Callable[[Array, Array], Array]:
    return lambda old, new: np.float32(momentum) * old + np.float32(1 - momentum) * new
