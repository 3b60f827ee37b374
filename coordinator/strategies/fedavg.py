"""FedAvg: synchronous rounds of a stated cohort (McMahan et al., arXiv 1602.05629; FedIT, arXiv 2305.05644).

    W <- W + eta * sum_k p_k * delta_k        p_k = n_k / sum n

The papers': the round, the weights by number of examples; FedIT averages the factors of LoRA, which is space
`factors` here. Ours: the server's learning rate (1 in the papers), space `product`, and a time budget after
which the round goes on with those who have answered. An update of an earlier round is rejected as too stale;
one that came while its round was being merged gets weight 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.errors import MergeError
from coordinator.strategies.base import Contribution, Report, State, Waiting, is_overdue, report_sum
from coordinator.strategies.spaces import add_up
from edge.protocol.messages import Space


@dataclass(frozen=True)
class FedAvg:
    """Merges when every device of `cohort` has answered, or any `cohort_size` devices where it is empty."""

    cohort_size: int
    cohort: frozenset[str] = frozenset()
    time_budget_s: float = 0.0
    space: Space = "product"
    server_lr: float = 1.0
    remainder_rank: int = 32
    name: str = "fedavg"

    def take(self, waiting: Sequence[Waiting]) -> int:
        """All, when the cohort is complete or its first answer has waited long enough."""
        fresh = [update for update in waiting if update.staleness == 0]
        answered = {update.device for update in fresh}
        complete = self.cohort <= answered if self.cohort else len(answered) >= self.cohort_size
        return len(waiting) if complete or is_overdue(fresh, self.time_budget_s) else 0

    def merge(self, state: State, buffer: Sequence[Contribution]) -> tuple[State, Report]:
        """Adds the mean of the round's updates, weighted by examples.

        Raises:
            MergeError: No update of this round was trained on any example.
        """
        counts = [one.num_examples if one.staleness == 0 else 0 for one in buffer]
        if sum(counts) == 0:
            raise MergeError(
                f"fedavg: {len(buffer)} updates hold no example of this round, expected at least one"
            )
        weights = [count / sum(counts) for count in counts]
        total = add_up(self.space, state, buffer, weights, self.server_lr, self.remainder_rank)
        return report_sum(self.name, self.space, state, buffer, weights, total)
