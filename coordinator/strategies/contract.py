"""The contract of every strategy: a pure function of (state, buffer) to (state, report).

A strategy reads no clock, no file and no network: what it needs is handed in, so that it runs alike in the
coordinator, in a test and in a simulation. Updates are loaded one at a time where the strategy allows it, so
that memory need not grow with their number.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converters.adapter import LoraAdapter
from edge.choices import Space


class Account(Struct, frozen=True, forbid_unknown_fields=True):
    """What the coordinator remembers of one device from version to version."""

    uploads: int = 0  # updates that were in a version's buffer
    weight: float = 0.0  # the weight they had, all together
    credit: float = 0.0  # weight that it is owed by `credit`; below 0 it had more than its share
    cosine: float = 0.0  # of its updates with the calibration loss's descent, running mean
    num_cosines: int = 0  # that went into it


class State(NamedTuple):
    """The global adapter, and what a strategy carries from version to version."""

    version: int
    adapter: LoraAdapter  # the master, of the fleet's rank
    # What the re-projection of `product` left over, to be added next time; FedEx-LoRA's residual.
    remainder: LoraAdapter | None = None
    moments: Mapping[str, LoraAdapter] = MappingProxyType({})  # the server optimiser's, by name
    accounts: Mapping[str, Account] = MappingProxyType({})  # by device
    norms: tuple[float, ...] = ()  # of the latest updates before `clip` cut them, oldest first


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
    trained_s: float = 0.0  # how long its device took to train it, by its own word


class Pace(NamedTuple):
    """How far the next version is."""

    take: int  # updates to merge now, oldest first; 0 is to wait for more
    have: int  # updates that count towards it; in a round, devices that have answered
    needed: int
    left_s: float | None  # until what is there is merged without the rest; None: nothing counts, or for ever


class Share(Struct, frozen=True, forbid_unknown_fields=True):
    """What one update had in a version."""

    update: str
    device: str
    base_version: int
    staleness: int
    num_examples: int
    weight: float  # the number its delta was multiplied by, the server's learning rate left out
    norm: float  # Frobenius norm of its delta over all modules, in the strategy's space
    reason: str = ""  # why a filter left it out, or cut it


class Report(Struct, frozen=True, forbid_unknown_fields=True):
    """How a version came about; the journal keeps it."""

    strategy: str
    space: Space
    shares: tuple[Share, ...]
    step_norm: float  # Frobenius norm of the step, in the strategy's space
    remainder_norm: float = 0.0  # of what is carried to the next version
    dropped_norm: float = 0.0  # of what the cap on the remainder's rank lost
    step_scale: float = 1.0  # in merged steps, by the guard; 0: refused, the adapter stayed as it was
    loss_before: float | None = None  # on the calibration set, nats per label; None: no guard
    loss_after: float | None = None
    loss_refused: float | None = None  # of the shortest step that was tried, where the guard refused it


class Calibrator(Protocol):
    """The calibration set, as the base model reads it with an adapter: a pure function of the adapter."""

    def loss(self, adapter: LoraAdapter) -> float:
        """Returns the mean loss, in nats per label."""
        ...

    def gradient(self, adapter: LoraAdapter) -> LoraAdapter:
        """Returns the gradient of `loss` with respect to every `a` and `b`."""
        ...

    def features(self, adapter: LoraAdapter) -> NDArray[np.float32]:
        """Returns each example's mean hidden state before the head: (examples, hidden size)."""
        ...

    def pull_back(self, adapter: LoraAdapter, cotangent: NDArray[np.float32]) -> LoraAdapter:
        """Returns the gradient of <`cotangent`, `features`> with respect to every `a` and `b`."""
        ...


class Strategy(Protocol):
    """How a buffer becomes a version."""

    @property
    def name(self) -> str:
        """Returns the name that the configuration and the journal know it by."""
        ...

    def pace(self, waiting: Sequence[Waiting], num_devices: int) -> Pace:
        """Decides whether to merge now, or what to wait for.

        Args:
            waiting: The buffer, oldest first.
            num_devices: Devices that have an update in the buffer, or are online and could send one.
        """
        ...

    def merge(self, state: State, buffer: Sequence[Contribution]) -> tuple[State, Report]:
        """Makes the next state, whose version is one more.

        Raises:
            MergeError: The buffer is empty, its weights are all zero, or it is no adapter any more when
                merged.
        """
        ...
