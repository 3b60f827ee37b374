"""A strategy as a row of stages: what is done to updates, how they are merged, what the server makes of it.

    order  ->  merge  ->  server optimiser  ->  guard            see `method.py`

A stage is a pure function; nothing here reads a clock or a file. Whatever the strategy, an update whose
weight is zero in the end is not read again, and the report says why.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from converters.errors import AdapterError
from coordinator.errors import MergeError
from coordinator.strategies.accounts import settle
from coordinator.strategies.contract import Calibrator, Contribution, Pace, Report, Share, State, Waiting
from coordinator.strategies.guard import Step, refuse
from coordinator.strategies.held import HELD_BYTES, HeldDeltas
from coordinator.strategies.method import Method
from coordinator.strategies.optimizers import Run, restart
from coordinator.strategies.pipeline_state import PipelineState, begin
from coordinator.strategies.privacy import merge_of
from coordinator.strategies.sharing import keep_shared
from coordinator.strategies.stages.weights import Examples
from coordinator.strategies.triggers import (
    automatic_budget_s,
    automatic_size,
    pace_buffer,
    pace_round,
)
from coordinator.strategies.weight_cap import cap_devices
from edge.choices import Space
from edge.privacy.noise import SYSTEM, Draw
from edge.privacy.terms import NO_TERMS, Terms


@dataclass(frozen=True)
class Pipeline:
    """A strategy made of stages.

    Attributes:
        name: As the configuration and the journal call it.
        method: What it does.
        buffer_size: Updates that make a version; devices that make a round without a cohort; under trigger
            `arrival` one update does. None follows the devices: see `triggers.py`; a round waits for all.
        time_budget_s: When the oldest update has waited this long, what is there is merged; 0 waits on, None
            is as long as it was trained, within bounds.
        cohort: Devices that a round waits for.
        server_lr: η, by which the merged step is multiplied.
        remainder_rank: Rank of what is carried from version to version.
        calibrator: For the stages that ask for the calibration set.
        terms: Of privacy; where noise is added here, it goes on the sum.
        draw: Gives the noise's random bytes.
        held_bytes: What the deltas of a buffer may take in memory, where they are read more than once.
        max_weight_ratio: See `weight_cap.py`; a stage that shares out needs none.
    """

    name: str
    method: Method
    buffer_size: int | None
    time_budget_s: float | None = 0.0
    cohort: frozenset[str] = frozenset()
    server_lr: float = 1.0
    remainder_rank: int = 32
    calibrator: Calibrator | None = None
    terms: Terms = NO_TERMS
    draw: Draw = SYSTEM
    held_bytes: int = HELD_BYTES
    max_weight_ratio: float = math.inf

    @property
    def space(self) -> Space:
        """Returns what is added up."""
        return self.method.space

    def pace(self, waiting: Sequence[Waiting], num_devices: int) -> Pace:
        """See `Strategy.pace`."""
        budget_s = automatic_budget_s(waiting) if self.time_budget_s is None else self.time_budget_s
        if self.method.trigger == "round":
            size = max(1, num_devices) if self.buffer_size is None else self.buffer_size
            return pace_round(waiting, size, self.cohort, budget_s)
        if self.method.trigger == "arrival":
            return pace_buffer(waiting, 1, budget_s)
        size = automatic_size(num_devices) if self.buffer_size is None else self.buffer_size
        return pace_buffer(waiting, size, budget_s)

    def merge(self, state: State, buffer: Sequence[Contribution]) -> tuple[State, Report]:
        """Makes the next state and tells how; a step that the guard refuses leaves the adapter as it was.

        Raises:
            MergeError: The buffer is empty, its weights are all zero though no filter left an update out, or
                it is no adapter any more when merged.
        """
        if not buffer:
            raise MergeError(f"{self.name}: the buffer is empty, expected at least one update")
        try:
            pipeline = self._prepare(state, buffer)
            step = self._step(pipeline)
        except AdapterError as error:
            raise MergeError(f"{self.name}: merging {len(buffer)} updates: {error}") from error
        return _next_state(pipeline, step), self._report(pipeline, step)

    def _prepare(self, state: State, buffer: Sequence[Contribution]) -> PipelineState:
        items = begin(buffer)
        if any(stage.reads for stage in self.method.order):
            held = HeldDeltas(self.held_bytes)
            items = tuple(item._replace(load_delta=held.hold(item.load_delta)) for item in items)
        items = keep_shared(items, self.method, state.adapter.max_rank)
        pipeline = PipelineState(state, items, self.space, self.method.trigger, self.calibrator)
        for stage in self.method.order:
            pipeline = stage(pipeline)
        if not any(stage.shares_out for stage in self.method.order):
            pipeline = cap_devices(pipeline, self.max_weight_ratio)
        if not pipeline.chosen and not any(item.is_out for item in pipeline.items):
            by_examples = any(isinstance(stage, Examples) for stage in self.method.order)
            raise MergeError(
                f"{self.name}: the weights of all {len(buffer)} updates are zero, expected one above zero: "
                f"{'they hold no example of this round' if by_examples else 'see stages'}"
            )
        return pipeline

    def _step(self, pipeline: PipelineState) -> Step:
        if not pipeline.chosen:
            return refuse(pipeline)
        method, guard = self.method, self.method.guard
        longest, tries = (guard.longest, guard.tries) if guard else (1.0, 1)
        merge = merge_of(method, self.terms, self.draw)
        run = Run(pipeline, merge, longest, tries, self.server_lr, self.remainder_rank)
        step = method.optimizer.prepare(run)
        return guard.choose(pipeline, step) if guard else step(1.0)

    def _report(self, pipeline: PipelineState, step: Step) -> Report:
        norms = dict(zip([item.source.update for item in pipeline.chosen], step.total.norms, strict=True))
        return Report(
            strategy=self.name,
            space=self.space,
            shares=tuple(
                Share(
                    update=item.source.update,
                    device=item.source.device,
                    base_version=item.source.base_version,
                    staleness=item.source.staleness,
                    num_examples=item.source.num_examples,
                    weight=item.weight * step.length,
                    norm=norms.get(item.source.update, 0.0),
                    reason=item.reason,
                )
                for item in pipeline.items
            ),
            step_norm=step.total.step_norm,
            remainder_norm=step.total.remainder_norm,
            dropped_norm=step.total.dropped_norm,
            step_scale=step.length,
            loss_before=step.loss_before,
            loss_after=step.loss_after,
            loss_refused=step.loss_refused,
        )


def _next_state(pipeline: PipelineState, step: Step) -> State:
    old = pipeline.state
    is_refused = step.length == 0 and step.loss_before is not None
    return State(
        version=old.version + 1,
        adapter=step.total.adapter,
        remainder=step.total.remainder,
        moments=restart(step.moments) if is_refused else step.moments,
        accounts=settle(old, pipeline.items, step.length),
        norms=old.norms,
    )
