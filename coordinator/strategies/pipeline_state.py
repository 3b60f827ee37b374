"""The buffer on its way through the stages: every stage takes a `PipelineState` and gives the next.

Deltas stay behind a function until they are merged, so that memory need not grow with the buffer; a stage
that changes deltas wraps that function. What a stage needs of all deltas it reads in a pass of its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from converters import lowrank
from converters.adapter import LoraAdapter
from converters.arithmetic import norm
from coordinator.errors import MergeError
from coordinator.strategies.contract import Calibrator, Contribution, State
from edge.choices import Space

Trigger = Literal["buffer", "round", "arrival"]


class Item(NamedTuple):
    """One update as the stages before have left it."""

    source: Contribution
    weight: float
    load_delta: Callable[[], LoraAdapter]
    load_base: Callable[[], LoraAdapter]  # what the delta is to be added to for its true change
    # How the delta differs from its group's mean, where `centre` told them apart.
    load_deviation: Callable[[], LoraAdapter] | None = None
    norm: float | None = None  # of the delta, in the strategy's space, once a stage has asked
    reason: str = ""  # why a filter left it out, or cut it
    is_out: bool = False  # a filter left it out

    def changed(self, load_delta: Callable[[], LoraAdapter]) -> "Item":
        """Returns the item with another delta."""
        return self._replace(load_delta=load_delta, norm=None)


class PipelineState(NamedTuple):
    """A buffer, and what its stages work with."""

    state: State
    items: tuple[Item, ...]
    space: Space = "factors"
    trigger: Trigger = "buffer"
    calibrator: Calibrator | None = None

    @property
    def chosen(self) -> list[Item]:
        """Returns the items that still count."""
        return [item for item in self.items if item.weight > 0]

    @property
    def norms(self) -> list[float]:
        """Returns the norms that `measure` took; 0 for items that do not count any more."""
        return [(item.norm or 0.0) if item.weight > 0 else 0.0 for item in self.items]

    def weigh(self, factors: Sequence[float]) -> "PipelineState":
        """Multiplies every weight by its factor."""
        items = (item._replace(weight=item.weight * by) for item, by in zip(self.items, factors, strict=True))
        return self._replace(items=tuple(items))

    def measure(self) -> "PipelineState":
        """Takes the Frobenius norm of every delta that counts and was not measured yet, in the space."""
        items = (
            item._replace(norm=delta_norm(item.load_delta(), item.load_base(), self.space))
            if item.weight > 0 and item.norm is None
            else item
            for item in self.items
        )
        return self._replace(items=tuple(items))

    def drop(self, reasons: Mapping[int, str]) -> "PipelineState":
        """Leaves out the items at these places, each for its reason."""
        items = list(self.items)
        for place, reason in reasons.items():
            items[place] = items[place]._replace(weight=0.0, reason=reason, is_out=True)
        return self._replace(items=tuple(items))

    def drop_endless(self) -> "PipelineState":
        """Measures, and leaves out the items whose norm is not finite."""
        with np.errstate(over="ignore", invalid="ignore"):  # told as what it is, below
            measured = self.measure()
        endless = [place for place, size in enumerate(measured.norms) if not math.isfinite(size)]
        return measured.drop(dict.fromkeys(endless, "its norm is not finite"))

    def groups(self) -> Mapping[tuple[int, int], list[int]]:
        """Finds the places in `items` of each base version and rank, of items that still count.

        Returns:
            G_k = {i : v_i = k} of AlignFed (arXiv 2606.08197, Eq. 4); here also of one rank.
        """
        places: dict[tuple[int, int], list[int]] = {}
        for place, item in enumerate(self.items):
            if item.weight > 0:
                key = (item.source.base_version, item.load_base().max_rank)
                places.setdefault(key, []).append(place)
        return places

    def need_calibrator(self, asker: str) -> Calibrator:
        """Returns the calibration set, which `asker` cannot do without.

        Raises:
            MergeError: There is none.
        """
        if self.calibrator is None:
            raise MergeError(
                f"{asker} needs a calibration set; set calibration_data, or leave {asker} out of stages"
            )
        return self.calibrator


def begin(buffer: Sequence[Contribution]) -> tuple[Item, ...]:
    """Makes the buffer's items before the first stage: every update weighs 1/K."""
    return tuple(Item(one, 1 / len(buffer), one.load_delta, one.load_base) for one in buffer)


def delta_norm(delta: LoraAdapter, base: LoraAdapter, space: Space) -> float:
    """Measures the increments, or the true change of the products: a Frobenius norm over all modules."""
    if space == "factors":
        return norm(delta)
    squares = (lowrank.norm(lowrank.change(base.modules[name], factors)) ** 2 for name, factors in delta)
    return float(np.sqrt(sum(squares)))
