"""An update as a whole adapter: FedAsync mixes them, FLoRA and HetLoRA add them up."""

from functools import partial
from typing import ClassVar

from converters.adapter import Factors, LoraAdapter
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
    base, delta = item.load_base(), item.load_delta()
    changed = {}
    for name, f in delta:
        old, began = present.modules[name], base.modules[name]
        a, b = -old.a, -old.b
        a[: f.rank] += began.a + f.a
        b[:, : f.rank] += began.b + f.b
        changed[name] = Factors(a, b, f.scale)
    return LoraAdapter(changed)
