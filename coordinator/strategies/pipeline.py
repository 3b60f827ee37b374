"""A strategy as a row of stages: what is done to updates, how they are merged, what the server makes of it.

    order (see `stages.py`)  ->  merge  ->  server optimiser  ->  guard

A stage is a pure function; nothing here reads a clock or a file. Whatever the strategy, an update whose
weight is zero in the end is not read again, and the report says why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from converters.errors import AdapterError
from coordinator.errors import MergeError
from coordinator.strategies.alignment import align
from coordinator.strategies.base import Calibrator, Contribution, Pace, Report, Share, State, Waiting
from coordinator.strategies.filters import clip, drop_far, drop_opposed
from coordinator.strategies.grouping import centre, centre_literally, group, make_absolute
from coordinator.strategies.guard import Step, choose_step
from coordinator.strategies.merges import merge_items
from coordinator.strategies.optimizers import restart, take_step
from coordinator.strategies.sharing import keep_shared
from coordinator.strategies.stages import StageName, Stages
from coordinator.strategies.triggers import (
    automatic_budget_s,
    automatic_size,
    pace_buffer,
    pace_round,
)
from coordinator.strategies.weighting import (
    mix,
    normalise,
    settle,
    weigh_by_credit,
    weigh_by_examples,
    weigh_by_fairness,
    weigh_by_freshness,
    weigh_by_inverse_norm,
    weigh_by_product_norm,
)
from coordinator.strategies.work import Stage, Work, begin
from edge.protocol.messages import Space

STAGES: Mapping[StageName, Stage] = {
    "group": group,
    "absolute": make_absolute,
    "mix": mix,
    "centre": centre,
    "centre-literal": centre_literally,
    "align": align,
    "clip": clip,
    "cosine": drop_opposed,
    "krum": drop_far,
    "examples": weigh_by_examples,
    "freshness": weigh_by_freshness,
    "fairness": weigh_by_fairness,
    "credit": weigh_by_credit,
    "inverse-norm": weigh_by_inverse_norm,
    "product-norm": weigh_by_product_norm,
    "normalise": normalise,
}


@dataclass(frozen=True)
class Pipeline:
    """A strategy made of stages.

    Attributes:
        name: As the configuration and the journal call it.
        stages: What it does.
        buffer_size: Updates that make a version; devices that make a round without a cohort; under trigger
            `arrival` one update does. None follows the devices: see `triggers.py`; a round waits for all.
        time_budget_s: When the oldest update has waited this long, what is there is merged; 0 waits on, None
            is as long as it was trained, within bounds.
        cohort: Devices that a round waits for.
        server_lr: η, by which the merged step is multiplied.
        remainder_rank: Rank of what is carried from version to version.
        calibrator: For the stages that ask for the calibration set.
    """

    name: str
    stages: Stages
    buffer_size: int | None
    time_budget_s: float | None = 0.0
    cohort: frozenset[str] = frozenset()
    server_lr: float = 1.0
    remainder_rank: int = 32
    calibrator: Calibrator | None = None

    @property
    def space(self) -> Space:
        """What is added up."""
        return self.stages.space

    def pace(self, waiting: Sequence[Waiting], num_devices: int) -> Pace:
        """See `Strategy.pace`."""
        budget_s = automatic_budget_s(waiting) if self.time_budget_s is None else self.time_budget_s
        if self.stages.trigger == "round":
            size = max(1, num_devices) if self.buffer_size is None else self.buffer_size
            return pace_round(waiting, size, self.cohort, budget_s)
        if self.stages.trigger == "arrival":
            return pace_buffer(waiting, 1, budget_s)
        size = automatic_size(num_devices) if self.buffer_size is None else self.buffer_size
        return pace_buffer(waiting, size, budget_s)

    def merge(self, state: State, buffer: Sequence[Contribution]) -> tuple[State, Report]:
        """The next state and how it came about; a step that the guard refuses leaves the adapter as it was.

        Raises:
            MergeError: The buffer is empty, its weights are all zero though no filter left an update out, or
                it is no adapter any more when merged.
        """
        if not buffer:
            raise MergeError(f"{self.name}: the buffer is empty, expected at least one update")
        try:
            work = self._work(state, buffer)
            step = choose_step(work, partial(self._step, work))
        except AdapterError as error:
            raise MergeError(f"{self.name}: merging {len(buffer)} updates: {error}") from error
        return _next_state(work, step), self._report(work, step)

    def _work(self, state: State, buffer: Sequence[Contribution]) -> Work:
        work = keep_shared(begin(state, buffer, self.stages, self.space, self.calibrator))
        for name in self.stages.order:
            work = STAGES[name](work)
        if not work.chosen and not any(item.is_out for item in work.items):
            raise MergeError(
                f"{self.name}: the weights of all {len(buffer)} updates are zero, expected one above zero: "
                f"{'they hold no example of this round' if 'examples' in self.stages.order else 'see stages'}"
            )
        return work

    def _step(self, work: Work, length: float) -> Step:
        merge = partial(merge_items, work, remainder_rank=self.remainder_rank)
        return take_step(work, merge, length, self.server_lr, self.remainder_rank)

    def _report(self, work: Work, step: Step) -> Report:
        norms = dict(zip([item.source.update for item in work.chosen], step.total.norms, strict=True))
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
                for item in work.items
            ),
            step_norm=step.total.step_norm,
            remainder_norm=step.total.remainder_norm,
            dropped_norm=step.total.dropped_norm,
            step_scale=step.length,
            loss_before=step.loss_before,
            loss_after=step.loss_after,
            loss_refused=step.loss_refused,
        )


def _next_state(work: Work, step: Step) -> State:
    old = work.state
    is_refused = step.length == 0 and step.loss_before is not None
    return State(
        version=old.version + 1,
        adapter=step.total.adapter,
        remainder=step.total.remainder,
        moments=restart(step.moments) if is_refused else step.moments,
        accounts=settle(old, work.items, step.length),
        norms=old.norms,
    )
