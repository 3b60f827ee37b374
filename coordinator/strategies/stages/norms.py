"""How much an update counts, by how long it is."""

from typing import ClassVar

import numpy as np

from converters.arithmetic import add, select
from converters.lowrank import adapter_norm
from coordinator.strategies.pipeline_state import Item, PipelineState, delta_norm
from coordinator.strategies.record import Share
from coordinator.strategies.stages.contract import Stage

EPSILON = 1e-8


class InverseNorm(Stage, frozen=True, tag="inverse-norm"):
    """Weighs by 1 / (|D_i| + 1e-8), D_i being what `centre` told apart (AlignFed, arXiv 2606.08197, Eq. 7).

    Ours: norms are taken for no less than `floor` times the median of those above zero, and a group of one,
    whose D is zero, is taken to have that median. Where nothing was told apart D_i is the whole delta.
    """

    floor: Share = 0.1

    def __call__(self, pipeline: PipelineState) -> PipelineState:
        """See `Stage`."""
        norms = _deviations(pipeline)
        apart = [norm for norm in norms if norm > 0]
        if apart:
            usual = float(np.median(apart))
            norms = [max(norm, self.floor * usual) for norm in norms]
            for places in pipeline.groups().values():
                if len(places) == 1 and pipeline.items[places[0]].load_deviation:
                    norms[places[0]] = usual  # it is its group's mean: that says nothing of how it deviates
        return pipeline.weigh([1 / (norm + EPSILON) for norm in norms])


class InverseNormLiteral(Stage, frozen=True, tag="inverse-norm-literal"):
    """Weighs by 1 / (|D_i| + 1e-8) as AlignFed prints it: a D_i of zero weighs 1e8."""

    def __call__(self, pipeline: PipelineState) -> PipelineState:
        """See `Stage`."""
        return pipeline.weigh([1 / (norm + EPSILON) for norm in _deviations(pipeline)])


class ProductNorm(Stage, frozen=True, tag="product-norm"):
    """Weighs by |B_i A_i|, the norm of the product that a device's adapter is (HetLoRA, arXiv 2401.06432)."""

    needs_product: ClassVar[bool] = True

    def __call__(self, pipeline: PipelineState) -> PipelineState:
        """See `Stage`."""
        return pipeline.weigh([_product_norm(item) if item.weight > 0 else 0.0 for item in pipeline.items])


def _deviations(pipeline: PipelineState) -> list[float]:
    return [
        delta_norm((item.load_deviation or item.load_delta)(), item.load_base(), pipeline.space)
        if item.weight > 0
        else 0.0
        for item in pipeline.items
    ]


def _product_norm(item: Item) -> float:
    delta = item.load_delta()
    return adapter_norm(select(add(item.load_base(), delta), delta.modules))
