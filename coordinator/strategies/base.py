"""The contract of every strategy: a pure function of (state, buffer) to (state, report).

A strategy reads no clock, no file and no network: what it needs is handed in, so that it runs alike in the
coordinator, in a test and in a simulation. Updates are loaded one at a time where the strategy allows it, so
that memory need not grow with their number.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from converters.adapter import LoraAdapter
from edge.protocol.messages import Space


class State(NamedTuple):
    """The global adapter, and what a strategy carries from version to version."""

    version: int
    adapter: LoraAdapter  # the master, of the fleet's rank
    remainder: LoraAdapter | None = (
        None  # of `product`: what the re-projection left over, to be added next time
    )


class Contribution(NamedTuple):
    """One update in the buffer; its tensors are read when they are asked for."""

    update: str
    device: str
    base_version: int
    staleness: int  # versions along the lineage between the base version and the present one
    num_examples: int
    load_delta: Callable[[], LoraAdapter]  # increments of A and B, of the device's tier
    load_base: Callable[[], LoraAdapter]  # what was dispatched to that tier


class Waiting(NamedTuple):
    """One update in the buffer, as far as it matters for whether to merge now."""

    device: str
    staleness: int
    waited_s: float


class Share(Struct, frozen=True, forbid_unknown_fields=True):
    """What one update had in a version."""

    update: str
    device: str
    base_version: int
    staleness: int
    num_examples: int
    weight: float  # the number its delta was multiplied by, the server's learning rate left out
    norm: float  # Frobenius norm of its delta over all modules, in the strategy's space


class Report(Struct, frozen=True, forbid_unknown_fields=True):
    """How a version came about; the journal keeps it."""

    strategy: str
    space: Space
    shares: tuple[Share, ...]
    step_norm: float  # Frobenius norm of the step, in the strategy's space
    remainder_norm: float = 0.0  # of what is carried to the next version
    dropped_norm: float = 0.0  # of what the cap on the remainder's rank lost


class Strategy(Protocol):
    """How a buffer becomes a version."""

    @property
    def name(self) -> str:
        """As the configuration and the journal call it."""
        ...

    def take(self, waiting: Sequence[Waiting]) -> int:
        """How many of the updates that wait, oldest first, to merge now; 0 is to wait for more."""
        ...

    def merge(self, state: State, buffer: Sequence[Contribution]) -> tuple[State, Report]:
        """The next state; its version is one more.

        Raises:
            MergeError: The buffer is empty, or its weights are all zero.
        """
        ...


class Sum(NamedTuple):
    """A state after a weighted sum of deltas was added to it, and the norms its report needs."""

    adapter: LoraAdapter
    remainder: LoraAdapter | None
    norms: tuple[float, ...]  # of each delta, in order of the buffer
    step_norm: float
    remainder_norm: float = 0.0
    dropped_norm: float = 0.0


def is_overdue(waiting: Sequence[Waiting], time_budget_s: float) -> bool:
    """Whether the oldest update has waited longer than the budget; a budget of 0 never ends."""
    return time_budget_s > 0 and any(update.waited_s >= time_budget_s for update in waiting)


def report_sum(
    name: str,
    space: Space,
    state: State,
    buffer: Sequence[Contribution],
    weights: Sequence[float],
    total: Sum,
) -> tuple[State, Report]:
    """The next state, and the report of how `total` came about."""
    shares = tuple(
        Share(
            update=one.update,
            device=one.device,
            base_version=one.base_version,
            staleness=one.staleness,
            num_examples=one.num_examples,
            weight=weight,
            norm=norm,
        )
        for one, weight, norm in zip(buffer, weights, total.norms, strict=True)
    )
    report = Report(
        strategy=name,
        space=space,
        shares=shares,
        step_norm=total.step_norm,
        remainder_norm=total.remainder_norm,
        dropped_norm=total.dropped_norm,
    )
    return State(state.version + 1, total.adapter, total.remainder), report
