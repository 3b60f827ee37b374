"""The contract of a merge: `prepare` reads the updates once, `at` gives the state after a part of the step.

The guard tries lengths one after the other. What does not depend on the length (deltas, norms, Gram matrices,
a weighted sum) is found once; lengths are halved, and a step times a power of two is the same to the last
bit, whether weights were halved or their sum.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

from converters.adapter import LoraAdapter
from coordinator.strategies.contract import State
from coordinator.strategies.record import Record
from edge.choices import Space


class Change(Protocol):
    """What a merge needs of an update."""

    def load_delta(self) -> LoraAdapter:
        """Returns increments of A and B."""
        ...

    def load_base(self) -> LoraAdapter:
        """Returns what they are increments to."""
        ...


class Loaded(NamedTuple):
    """A `Change` in memory."""

    base: LoraAdapter
    delta: LoraAdapter

    def load_delta(self) -> LoraAdapter:
        """See `Change`."""
        return self.delta

    def load_base(self) -> LoraAdapter:
        """See `Change`."""
        return self.base


def load_all(items: Sequence[Change]) -> list[Loaded]:
    """Reads all updates into memory."""
    return [Loaded(item.load_base(), item.load_delta()) for item in items]


class Terms(NamedTuple):
    """What is added up."""

    state: State  # what the updates are added to
    items: Sequence[Change]
    weights: Sequence[float]  # of each; the server's learning rate and the longest length are in them
    remainder_rank: int = 0  # of what may be carried to the next version
    tries: int = 1  # how often `at` may be called


class Total(NamedTuple):
    """A state after a weighted sum of deltas was added to it, and the norms its report needs."""

    adapter: LoraAdapter
    remainder: LoraAdapter | None
    norms: tuple[float, ...]  # of each delta, in order of the buffer
    step_norm: float
    remainder_norm: float = 0.0
    dropped_norm: float = 0.0


class Merged(Protocol):
    """Merged updates whose step can be taken in part."""

    def at(self, share: float) -> Total:
        """Returns the state with `share` of the step added.

        Raises:
            AdapterError: The sum is not finite.
        """
        ...


class Merge(Record, frozen=True):
    """One way to merge; a subclass names its kind as `tag`, and has its numbers as fields.

    Attributes:
        space: What is added up: increments of the factors, or true changes of the product.
    """

    space: ClassVar[Space] = "factors"

    def prepare(self, terms: Terms) -> Merged:
        """Reads the updates."""
        raise NotImplementedError
