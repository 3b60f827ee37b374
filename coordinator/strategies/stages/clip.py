"""What a device may do to a version by sending a long update is bounded."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from converters.adapter import Factors, LoraAdapter
from converters.arithmetic import multiply
from converters.lowrank import inner
from coordinator.strategies.pipeline_state import Item, PipelineState
from coordinator.strategies.record import Positive
from coordinator.strategies.stages.contract import Stage
from edge.choices import Space

MEMORY = 32  # norms of earlier updates that the bound goes by


class Clip(Stage, frozen=True, tag="clip"):
    """Cuts every delta's norm to at most `ratio` times the usual one.

    Norms are bounded as in Sun et al., Can you really backdoor federated learning? (arXiv 1911.07963). Ours:
    the usual norm is the median of the buffer's and of the last 32 before it, which the state carries. So a
    buffer of one has something to be measured by, and a small buffer that happens to be mostly hostile does
    not set its own bound. An update that is cut keeps its weight and has the reason; one whose norm is not
    finite is left out. In space `factors` norms are those of the increments' entries, in `product` those of
    the true changes, from factors and never from a dense matrix.
    """

    ratio: Positive = 2.0

    def __call__(self, pipeline: PipelineState) -> PipelineState:
        """See `Stage`."""
        pipeline = pipeline.drop_endless()
        counted = [norm for norm in pipeline.norms if norm > 0]
        if not counted:
            return pipeline
        state = pipeline.state
        bound = self.ratio * float(np.median([*state.norms, *counted]))
        items = [
            _cut(item, norm, bound, pipeline.space) if norm > bound else item
            for item, norm in zip(pipeline.items, pipeline.norms, strict=True)
        ]
        state = state._replace(norms=(*state.norms, *counted)[-MEMORY:])
        return pipeline._replace(items=tuple(items), state=state)


class Arc(NamedTuple):
    """The true change |t L + t^2 Q|^2 of a delta that is multiplied by t, as its three inner products."""

    linear: float  # |L|^2, L = B dA + dB A
    mixed: float  # <L, Q>
    quadratic: float  # |Q|^2, Q = dB dA

    def share_within(self, bound: float) -> float:
        """Finds by bisection a t in (0, 1] at which the change has the norm `bound`."""
        low, high = 0.0, 1.0
        for _ in range(40):
            t = (low + high) / 2
            square = t * t * (self.linear + t * (2 * self.mixed + t * self.quadratic))
            low, high = (t, high) if square <= bound * bound else (low, t)
        return low


def _cut(item: Item, norm: float, bound: float, space: Space) -> Item:
    by = bound / norm if space == "factors" else _arc(item.load_base(), item.load_delta()).share_within(bound)
    cut = item.changed(partial(_scaled, item.load_delta, by))
    return cut._replace(reason=f"norm {norm:.3g} cut to {bound:.3g}")


def _scaled(load_delta: Callable[[], LoraAdapter], by: float) -> LoraAdapter:
    return multiply(load_delta(), by)


def _arc(base: LoraAdapter, delta: LoraAdapter) -> Arc:
    linear, mixed, quadratic = 0.0, 0.0, 0.0
    for name, quad in delta:
        old = base.modules[name]
        line = Factors(np.concatenate([quad.a, old.a]), np.concatenate([old.b, quad.b], axis=1), quad.scale)
        linear += inner(line, line)
        mixed += inner(line, quad)
        quadratic += inner(quad, quad)
    return Arc(linear, mixed, quadratic)
