"""An update as a whole adapter: FedAsync mixes them, FLoRA and HetLoRA add them up."""

from functools import partial
from typing import ClassVar

from converters.adapter import LoraAdapter
from converters.arithmetic import add, multiply, select
from coordinator.strategies.pipeline_state import Item, PipelineState
from coordinator.strategies.stages.contract import Stage


class Absolute(Stage, frozen=True, tag="absolute"):
    """Makes each update the device's whole adapter minus the present one.

    Rows of the fleet's rank that the device has not are zero in its adapter, so that a lower rank draws them
    towards zero, as zero-padding does (HetLoRA, arXiv 2401.06432).
    """

    reads: ClassVar[bool] = False  # only when the delta is asked for

    def __call__(self, pipeline: PipelineState) -> PipelineState:
        """See `Stage`."""
        present = pipeline.state.adapter
        items = (
            item.changed(partial(_from_present, item, present))._replace(load_base=lambda: present)
            for item in pipeline.items
        )
        return pipeline._replace(items=tuple(items))


def _from_present(item: Item, present: LoraAdapter) -> LoraAdapter:
    delta = item.load_delta()
    trained = select(present, delta.modules)
    return add(multiply(trained, -1), add(item.load_base(), delta))
