"""A batch cut into groups of whole examples, each of which llama.cpp computes at once.

An example is a sequence of its own, so none sees another, and there is no padding.
"""

from collections.abc import Iterator

from edge.backends.contract import Batch
from edge.backends.llama_cpp.context import MAX_SEQUENCES

GROUP_TOKENS = 256  # unless one example is longer; with 512 attention costs more than fewer passes save


def make_groups(batch: Batch, *, needs_labels: bool = True) -> Iterator[Batch]:
    """Yields the batch's examples in order; those without a label are left out unless all are needed."""
    chosen: list[int] = []
    held = 0
    for index, (at, length) in enumerate(zip(batch.spans, batch.lengths.tolist(), strict=True)):
        if needs_labels and not batch.weights[at].any():
            continue
        if chosen and (held + length > GROUP_TOKENS or len(chosen) == MAX_SEQUENCES):
            yield batch.select(chosen)
            chosen, held = [], 0
        chosen.append(index)
        held += length
    if chosen:
        yield batch.select(chosen)
