"""The guard: no version is worse than the one before on the calibration set.

`backtrack` tries a step of `guard_longest` times the merged one, then half of that, and so on, and takes the
first that does not raise the calibration loss (Armijo, 1966, without a slope); where none is left, the
adapter stays as it was. Ours: to begin beyond the merged step. A mean of deltas that point apart is short,
and how far it may be followed is what the calibration set can tell. Tried and dropped: to remember the last
good length between versions, and to take the best of two lengths. Both end with short steps, which lower the
loss a little each time, and fleets came out at higher losses (`docs/strategy.md`).
"""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

from msgspec import Meta

from converters.adapter import LoraAdapter
from converters.lowrank import adapter_norm
from coordinator.strategies.merges.contract import Total
from coordinator.strategies.pipeline_state import PipelineState
from coordinator.strategies.record import NotNegative, Positive, Record


class Step(NamedTuple):
    """A merged step of some length, and what it comes to."""

    total: Total
    moments: Mapping[str, LoraAdapter]
    length: float = 1.0  # 0: refused
    loss_before: float | None = None
    loss_after: float | None = None
    loss_refused: float | None = None  # of the shortest step that was tried


class Guard(Record, frozen=True):
    """What chooses the length of a step; a subclass names its kind as `tag`."""

    longest: Positive = 1.0  # the first step that is tried, in merged steps
    tries: Annotated[int, Meta(ge=1)] = 4  # steps that are tried, each half as long as the one before

    def choose(self, pipeline: PipelineState, step: Callable[[float], Step]) -> Step:
        """Chooses the step to take.

        Args:
            pipeline: After its stages; some update is left.
            step: Makes the step that is a share of the longest one.

        Raises:
            MergeError: What it judges by is missing.
        """
        raise NotImplementedError


class Backtrack(Guard, frozen=True, tag="backtrack"):
    """Takes the first step that does not raise the calibration loss, and refuses it where none is left."""

    tolerance: NotNegative = 0.0  # relative rise of the calibration loss that is let through

    def choose(self, pipeline: PipelineState, step: Callable[[float], Step]) -> Step:
        """See `Guard`."""
        calibrator = pipeline.need_calibrator("guard")
        before = calibrator.loss(pipeline.state.adapter)
        # A version whose own loss is no number is left by the first step whose loss is one.
        bound = before + abs(before) * self.tolerance if math.isfinite(before) else sys.float_info.max
        for tries in range(self.tries):
            share = 0.5**tries
            tried = step(share)
            loss = calibrator.loss(tried.total.adapter)
            if loss <= bound:
                return tried._replace(length=self.longest * share, loss_before=before, loss_after=loss)
        return refuse(pipeline, before, tried.total.norms, loss)


def refuse(
    pipeline: PipelineState,
    before: float | None = None,
    norms: tuple[float, ...] = (),
    loss_refused: float | None = None,
) -> Step:
    """Changes nothing but the version's number: devices go on, and the updates have had their chance."""
    state = pipeline.state
    rest = adapter_norm(state.remainder) if state.remainder else 0.0
    total = Total(state.adapter, state.remainder, norms, 0.0, rest)
    return Step(total, state.moments, 0.0, before, before, loss_refused)
