"""The contract of a stage: a record that is called on the pipeline state and gives the next one."""

from typing import ClassVar

from coordinator.strategies.pipeline_state import Item, PipelineState
from coordinator.strategies.record import Record


class Stage(Record, frozen=True):
    """One stage; a subclass names its kind as `tag`, and has its numbers as fields.

    Attributes:
        reads: Whether it reads deltas; these then stay in memory for the merge (see `held.py`).
        needs_calibration: Whether it asks for the calibration set.
        needs_product: Whether it reads the global adapter's product, which FedSA-LoRA has not.
        shares_out: Whether it gives every device its own share, however much it sends.
    """

    reads: ClassVar[bool] = True
    needs_calibration: ClassVar[bool] = False
    needs_product: ClassVar[bool] = False
    shares_out: ClassVar[bool] = False

    def __call__(self, pipeline: PipelineState) -> PipelineState:
        """Does its part.

        Raises:
            MergeError: What it needs is missing.
        """
        raise NotImplementedError


class Weight(Stage, frozen=True):
    """A stage that multiplies each update's weight by a number that does not depend on its delta."""

    reads: ClassVar[bool] = False

    def factor(self, item: Item, pipeline: PipelineState) -> float:
        """Returns what the item's weight is multiplied by."""
        raise NotImplementedError

    def __call__(self, pipeline: PipelineState) -> PipelineState:
        """See `Stage`."""
        return pipeline.weigh([self.factor(item, pipeline) for item in pipeline.items])
