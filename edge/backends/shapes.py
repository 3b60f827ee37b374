"""Few shapes: sizes are rounded up and filled with what weighs nothing.

A kernel is compiled for each shape, by MLX on a GPU and by oneDNN for bfloat16 on a processor, and kept. On
data of unlike lengths every step would bring new ones.
"""

import numpy as np

from edge.backends.batch_layout import Labels
from edge.backends.contract import Batch


def round_up(count: int, *, sizes: int = 4) -> int:
    """Rounds up to one of so many `sizes`, a power of two, to each power of two, and to a multiple of 16.

    With 4 an eighth is filled up on average, with 8 a sixteenth.
    """
    step = max(16, (1 << count.bit_length()) // (2 * sizes))
    return -(-max(count, 1) // step) * step


def fill_row(batch: Batch, width: int) -> Batch:
    """Widens rows to `width` with padding."""
    room = ((0, 0), (0, width - batch.tokens.shape[1]))
    return Batch._make(np.pad(field, room) for field in batch)


def fill_labels(labels: Labels, count: int) -> Labels:
    """Lengthens to `count` labels: those that are added lie at the first position and weigh 0."""
    return Labels._make(np.pad(field, (0, count - len(labels.places))) for field in labels)
