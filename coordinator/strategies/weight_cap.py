"""No device outweighs all others: what it may have in one merge is bounded by what they have."""

import math
from collections import defaultdict
from statistics import median_low

from coordinator.strategies.pipeline_state import PipelineState


def cap_devices(pipeline: PipelineState, ratio: float) -> PipelineState:
    """Cuts the weight of every device, all its updates together, to `ratio` times the median device's.

    Of two devices the median is the smaller one. What is cut goes to all in proportion, so that the weights
    add up to what they did. How many examples an update was trained on is its device's word, and how many of
    a buffer's updates are one device's is its choice: neither makes a merge its own.

    Args:
        pipeline: After the stages.
        ratio: At least 1; infinite changes nothing.
    """
    totals: dict[str, float] = defaultdict(float)
    for item in pipeline.chosen:
        totals[item.source.device] += item.weight
    if len(totals) < 2 or math.isinf(ratio):
        return pipeline
    bound = ratio * median_low(totals.values())
    if max(totals.values()) <= bound:
        return pipeline
    cut = {device: min(1.0, bound / total) for device, total in totals.items()}
    whole = sum(totals.values()) / sum(cut[device] * total for device, total in totals.items())
    items = []
    for item in pipeline.items:
        by = cut.get(item.source.device, 1.0)
        told = f"weight cut to {ratio:g} times the median device's" if item.weight > 0 and by < 1 else ""
        items.append(item._replace(weight=item.weight * by * whole, reason=item.reason or told))
    return pipeline._replace(items=tuple(items))
