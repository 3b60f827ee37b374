"""A strategy that is one plain function: for trying an idea, before it has a name, stages or a paper.

    def mean(adapter, updates):
        deltas = [update.load_delta().modules for update in updates]
        mean_of = lambda name, factor: sum(getattr(delta[name], factor) for delta in deltas) / len(deltas)
        return LoraAdapter(
            {n: Factors(f.a + mean_of(n, "a"), f.b + mean_of(n, "b"), f.scale) for n, f in adapter}
        )

It gets the present adapter and the updates of a full buffer, and gives the next adapter. What it did with
each update it does not say, so that its reports have even weights.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from converters.adapter import LoraAdapter
from converters.arithmetic import norm, subtract
from coordinator.errors import CoordinatorError
from coordinator.strategies.contract import Contribution, Pace, Report, Share, State, Waiting
from coordinator.strategies.held import HELD_BYTES, HeldDeltas
from coordinator.strategies.triggers import automatic_budget_s, automatic_size, pace_buffer
from edge.choices import Space

Merge = Callable[[LoraAdapter, Sequence[Contribution]], LoraAdapter]


class FunctionStrategy(NamedTuple):
    """A `coordinator.strategies.contract.Strategy` around a function.

    Attributes:
        merge_updates: From the present adapter and the buffer to the next adapter.
        buffer_size: Updates that make a version; None follows the number of devices.
        time_budget_s: When the oldest update has waited this long, what is there is merged; 0 waits on, None
            as long as it was trained.
        known_as: Its name; without one it has the function's.
    """

    merge_updates: Merge
    buffer_size: int | None = None
    time_budget_s: float | None = None
    known_as: str = ""

    @property
    def name(self) -> str:
        """Returns its name."""
        own = getattr(self.merge_updates, "__name__", type(self.merge_updates).__name__)
        return self.known_as or str(own)

    @property
    def space(self) -> Space:
        """Returns the space of the reports' norms: those of the factors' increments."""
        return "factors"

    def pace(self, waiting: Sequence[Waiting], num_devices: int) -> Pace:
        """See `Strategy.pace`."""
        size = automatic_size(num_devices) if self.buffer_size is None else self.buffer_size
        budget_s = automatic_budget_s(waiting) if self.time_budget_s is None else self.time_budget_s
        return pace_buffer(waiting, size, budget_s)

    def merge(self, state: State, buffer: Sequence[Contribution]) -> tuple[State, Report]:
        """See `Strategy.merge`.

        Raises:
            CoordinatorError: The function gives no adapter of the present one's modules and shapes. What it
                raises itself goes through, for it is the caller's code.
        """
        held = HeldDeltas(HELD_BYTES)  # a report needs their norms, too
        buffer = [one._replace(load_delta=held.hold(one.load_delta)) for one in buffer]
        adapter = self.merge_updates(state.adapter, buffer)
        self._check(state.adapter, adapter)
        report = Report(
            strategy=self.name,
            space=self.space,
            shares=tuple(_share(one, 1 / len(buffer)) for one in buffer),
            step_norm=norm(subtract(adapter, state.adapter)),
        )
        return state._replace(version=state.version + 1, adapter=adapter), report

    def _check(self, old: LoraAdapter, new: LoraAdapter) -> None:
        if not isinstance(new, LoraAdapter):
            raise CoordinatorError(f"strategy {self.name}: gave {type(new).__name__}, expected a LoraAdapter")
        shapes = [{name: (f.a.shape, f.b.shape, f.scale) for name, f in one} for one in (old, new)]
        wrong = [name for name in sorted(shapes[0] | shapes[1]) if shapes[0].get(name) != shapes[1].get(name)]
        if wrong:
            before, after = shapes[0].get(wrong[0]), shapes[1].get(wrong[0])
            raise CoordinatorError(
                f"strategy {self.name}: {len(wrong)} modules are not as they were; {wrong[0]} has a, b and "
                f"scale {after}, expected {before}"
            )


def _share(one: Contribution, weight: float) -> Share:
    return Share(
        update=one.update,
        device=one.device,
        base_version=one.base_version,
        staleness=one.staleness,
        num_examples=one.num_examples,
        weight=weight,
        norm=norm(one.load_delta()),
    )
