"""How a buffer becomes a version: pure functions of (state, buffer), by name."""

from coordinator.config import CoordinatorConfig
from coordinator.strategies.base import Strategy
from coordinator.strategies.fedavg import FedAvg
from coordinator.strategies.fedbuff import FedBuff


def choose_strategy(config: CoordinatorConfig) -> Strategy:
    """The strategy that a configuration names."""
    if config.strategy == "fedavg":
        return FedAvg(
            cohort_size=config.buffer_size,
            cohort=frozenset(config.cohort),
            time_budget_s=config.time_budget_s,
            space=config.space,
            server_lr=config.server_lr,
            remainder_rank=config.remainder_rank,
        )
    return FedBuff(
        buffer_size=config.buffer_size,
        time_budget_s=config.time_budget_s,
        space=config.space,
        server_lr=config.server_lr,
        remainder_rank=config.remainder_rank,
    )
