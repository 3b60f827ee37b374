"""How much an update counts, by what is known of it without its delta."""

import math
from typing import Annotated, ClassVar

from msgspec import Meta

from coordinator.strategies.contract import Account
from coordinator.strategies.pipeline_state import Item, PipelineState
from coordinator.strategies.record import NotNegative
from coordinator.strategies.stages.contract import Stage, Weight


class Examples(Weight, frozen=True, tag="examples"):
    """Weighs an update by n_i, the examples it was trained on (FedAvg, McMahan et al., arXiv 1602.05629).

    Where rounds are waited for, an update of an earlier one counts for nothing.
    """

    def factor(self, item: Item, pipeline: PipelineState) -> float:
        """See `Weight`."""
        is_late = pipeline.trigger == "round" and item.source.staleness > 0
        return 0 if is_late else item.source.num_examples


class Freshness(Weight, frozen=True, tag="freshness"):
    """Weighs an update by s(τ) = (1 + τ)^-rate, its staleness τ (FedAsync, Xie et al., arXiv 1903.03934)."""

    rate: NotNegative = 0.5

    def factor(self, item: Item, pipeline: PipelineState) -> float:
        """See `Weight`."""
        return float((1 + item.source.staleness) ** -self.rate)


class HingeFreshness(Weight, frozen=True, tag="freshness-hinge"):
    """Weighs by s(τ) = 1 up to τ = grace, then 1 / (rate (τ - grace) + 1) (FedAsync's second)."""

    rate: NotNegative = 10.0
    grace: Annotated[int, Meta(ge=0)] = 4  # versions

    def factor(self, item: Item, pipeline: PipelineState) -> float:
        """See `Weight`."""
        staleness = item.source.staleness
        return 1.0 if staleness <= self.grace else 1 / (self.rate * (staleness - self.grace) + 1)


class ExponentialFreshness(Weight, frozen=True, tag="freshness-exponential"):
    """Weighs by s(τ) = exp(-rate τ) (AlignFed, arXiv 2606.08197, Eq. 7, whose rates are 0.1 to 0.3)."""

    rate: NotNegative = 0.2

    def factor(self, item: Item, pipeline: PipelineState) -> float:
        """See `Weight`."""
        return math.exp(-self.rate * item.source.staleness)


class Mix(Weight, frozen=True, tag="mix"):
    """Weighs by alpha, the share of a device's adapter in the next one (FedAsync)."""

    share: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0

    def factor(self, item: Item, pipeline: PipelineState) -> float:
        """See `Weight`."""
        return self.share


class Fairness(Weight, frozen=True, tag="fairness"):
    """Weighs by 1 / sqrt(uploads_i + 1): the less, the oftener a device was heard (AlignFed, Eq. 7)."""

    def factor(self, item: Item, pipeline: PipelineState) -> float:
        """See `Weight`."""
        account = pipeline.state.accounts.get(item.source.device, Account())
        return 1 / math.sqrt(account.uploads + 1)


class Normalise(Stage, frozen=True, tag="normalise"):
    """Makes the weights add up to one; where all are zero they stay."""

    reads: ClassVar[bool] = False

    def __call__(self, pipeline: PipelineState) -> PipelineState:
        """See `Stage`."""
        total = sum(item.weight for item in pipeline.items)
        return pipeline.weigh([1 / total if total else 0.0] * len(pipeline.items))
