"""FedBuff: a buffer of asynchronous updates becomes a version (Nguyen et al., arXiv 2106.06639).

    W <- W + eta * (1/K) * sum_i s(tau_i) * delta_i        s(tau) = (1 + tau)^(-1/2)

The paper's: the buffer of K updates, the weight s, the server's learning rate eta. Ours: the time budget
after which a smaller buffer is merged (K is then what is there); staleness counted along the lineage, so
that a rollback makes no update older; and what W is: the adapter's product or its factors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.errors import MergeError
from coordinator.strategies.base import Contribution, Report, State, Waiting, is_overdue, report_sum
from coordinator.strategies.spaces import add_up
from edge.protocol.messages import Space


@dataclass(frozen=True)
class FedBuff:
    """Merges when `buffer_size` updates wait, or the oldest has waited for `time_budget_s` (0: never)."""

    buffer_size: int
    time_budget_s: float = 0.0
    space: Space = "product"
    server_lr: float = 1.0
    remainder_rank: int = 32
    name: str = "fedbuff"

    def take(self, waiting: Sequence[Waiting]) -> int:
        """The oldest K, or all once the oldest has waited long enough."""
        if len(waiting) >= self.buffer_size:
            return self.buffer_size
        return len(waiting) if is_overdue(waiting, self.time_budget_s) else 0

    def merge(self, state: State, buffer: Sequence[Contribution]) -> tuple[State, Report]:
        """Adds the buffer's mean, each update discounted by its staleness.

        Raises:
            MergeError: The buffer is empty.
        """
        if not buffer:
            raise MergeError("fedbuff: the buffer is empty, expected at least one update")
        weights = [freshness(one.staleness) / len(buffer) for one in buffer]
        total = add_up(self.space, state, buffer, weights, self.server_lr, self.remainder_rank)
        return report_sum(self.name, self.space, state, buffer, weights, total)


def freshness(staleness: int) -> float:
    """s(tau) = (1 + tau)^(-1/2)."""
    return float((1 + staleness) ** -0.5)
