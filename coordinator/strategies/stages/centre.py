"""An update as it differs from its group: the updates that began from one version, at one rank.

    G_k = {i : v_i = k}                   AlignFed (arXiv 2606.08197), Eq. 4; here also of one rank
    D_i = delta_i - mean over G_k         Eq. 5

The trap in Eq. 5: the group's mean is the direction in which its devices agree, and Eq. 8 never adds it back.
A group of one becomes zero, and two devices that found the same cancel.
"""

from collections.abc import Callable
from functools import partial

from converters.adapter import LoraAdapter
from converters.arithmetic import combine, subtract
from coordinator.strategies.pipeline_state import Item, PipelineState
from coordinator.strategies.stages.contract import Stage


class Centre(Stage, frozen=True, tag="centre"):
    """Tells how each delta differs from its group's mean, and leaves the delta as it is.

    Ours: the mean is kept, u_i = m_k + D_i, so that centring only decides what `inverse-norm` measures.
    """

    def __call__(self, pipeline: PipelineState) -> PipelineState:
        """See `Stage`."""
        return _centred(
            pipeline, lambda item, mean: item._replace(load_deviation=partial(_minus, item, mean))
        )


class CentreLiteral(Stage, frozen=True, tag="centre-literal"):
    """Leaves of each delta only what differs from its group's mean: Eq. 5 as printed."""

    def __call__(self, pipeline: PipelineState) -> PipelineState:
        """See `Stage`."""
        return _centred(pipeline, lambda item, mean: item.changed(partial(_minus, item, mean)))


def _centred(pipeline: PipelineState, change: Callable[[Item, LoraAdapter], Item]) -> PipelineState:
    items = list(pipeline.items)
    for places in pipeline.groups().values():
        like = items[places[0]].load_base()
        mean = combine([(1 / len(places), items[place].load_delta()) for place in places], like)
        for place in places:
            items[place] = change(items[place], mean)
    return pipeline._replace(items=tuple(items))


def _minus(item: Item, mean: LoraAdapter) -> LoraAdapter:
    return subtract(item.load_delta(), mean)
