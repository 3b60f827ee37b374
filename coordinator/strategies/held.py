"""Decoded deltas that stay in memory while a version is made, so that each payload is read once.

Where stages read deltas before the merge does, they are held, up to `HELD_BYTES` of float32 factors for all
of a buffer; what does not fit is read again by each that asks, as everything was before. Where only the merge
reads them nothing is held: a running sum then needs one delta at a time.
"""

from collections.abc import Callable

from converters.adapter import LoraAdapter

HELD_BYTES = 512 << 20  # 20 updates of 25.7 MB: rank 8 on 196 modules of 2048 x 2048


class HeldDeltas:
    """The deltas of one buffer.

    Args:
        limit_bytes: What they may take together.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._left_bytes = limit_bytes

    def hold(self, load: Callable[[], LoraAdapter]) -> Callable[[], LoraAdapter]:
        """Returns `load` as a function that loads once, if the result fits into what is left."""
        held: LoraAdapter | None = None

        def load_held() -> LoraAdapter:
            nonlocal held
            if held is not None:
                return held
            found = load()
            size_bytes = 4 * found.num_parameters
            if size_bytes <= self._left_bytes:
                self._left_bytes -= size_bytes
                held = found
            return found

        return load_held
