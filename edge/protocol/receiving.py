"""A payload on its way here, as decisions alone: which chunks have come, and when to ask for more.

`Received` is what everybody keeps who receives: a device of its downloads, a coordinator of its uploads.
`Pull` is what only a download has, since it asks: windows, and an end to patience. Nothing here waits, reads
a clock or touches a disk (`edge.storage.parts`, `edge.delivery.download`); times are seconds of any clock.
"""

from edge.errors import Rejected
from edge.protocol.chunks import chunk_length, missing_ranges, num_chunks
from edge.protocol.messages import WINDOW, Range

MAX_CHUNKS = 1 << 20  # a byte of memory each; 64 GiB in chunks of 64 KiB


def bounded_chunks(size_bytes: int, chunk_bytes: int) -> int:
    """Returns how many chunks a payload has, before any memory is taken for them.

    Raises:
        Rejected: `too-large`: more than `MAX_CHUNKS`.
    """
    total = num_chunks(size_bytes, chunk_bytes)
    if total > MAX_CHUNKS:
        raise Rejected("too-large", f"{total} chunks, expected at most {MAX_CHUNKS}")
    return total


class Received:
    """Which chunks of a payload are here.

    Args:
        size_bytes: Of the payload; the caller has bounded it.
        chunk_bytes: Of every chunk but the last.
        present: A byte for each chunk, as `present` of an earlier process; None where nothing is here.

    Raises:
        Rejected: `too-large`: it has more than `MAX_CHUNKS` chunks.
    """

    def __init__(self, size_bytes: int, chunk_bytes: int, present: bytes | None = None) -> None:
        self._size_bytes = size_bytes
        self._chunk_bytes = chunk_bytes
        total = bounded_chunks(size_bytes, chunk_bytes)
        self.present = bytearray(total) if present is None else bytearray(present)
        self.num_missing = self.present.count(0)

    @property
    def total(self) -> int:
        """Returns how many chunks the payload has."""
        return len(self.present)

    @property
    def is_complete(self) -> bool:
        """Tells whether every chunk has come."""
        return self.num_missing == 0

    def missing(self, max_ranges: int = 256) -> tuple[Range, ...]:
        """Returns the chunks that have not come, as ranges, the first `max_ranges` of them."""
        return missing_ranges(self.present, max_ranges)

    def lacks(self, number: int, length: int) -> bool:
        """Tells whether a chunk of that number and length has not come yet.

        Raises:
            Rejected: `malformed`: the payload has no such chunk.
        """
        expected = max(chunk_length(number, self._size_bytes, self._chunk_bytes), 0)
        if expected == 0 or length != expected:
            raise Rejected("malformed", f"chunk {number} of {length} bytes, expected {expected}")
        return not self.present[number]

    def take(self, number: int) -> None:
        """Notes that a chunk which `lacks` named is kept now."""
        self.present[number] = 1
        self.num_missing -= 1

    def forget(self) -> None:
        """Notes that every chunk has to come again."""
        self.present[:] = bytes(len(self.present))
        self.num_missing = len(self.present)


class Pull:
    """The windows of one download: what to ask for, and when.

    A window is asked for when the one before has come, or has stood still for `patience_s`. One of which
    nothing came at all is the last: whoever has the blob is gone, or has it no longer.

    Args:
        received: What is here; it grows between the calls.
        patience_s: How long to wait without a new chunk.
        window: Chunks asked for at a time.
    """

    def __init__(self, received: Received, patience_s: float, window: int = WINDOW) -> None:
        self._received = received
        self._patience_s = patience_s
        self._window = window
        self._asked_from: int | None = None  # chunks missing when the window was asked for
        self._seen = received.num_missing
        self._moved_at = 0.0
        self.is_over = False

    def ask(self, now: float) -> tuple[Range, ...]:
        """Returns the ranges to ask for now; none where a window is under way, or all is here or given up."""
        missing = self._received.num_missing
        if missing < self._seen:
            self._seen, self._moved_at = missing, now
        if self.is_over or missing == 0:
            return ()
        if self._asked_from is not None:
            came = self._asked_from - missing
            if came < min(self._window, self._asked_from):
                if self.wait_s(now) > 0:
                    return ()
                if came == 0:
                    self.is_over = True
                    return ()
        self._asked_from, self._moved_at = missing, now
        return self._received.missing()

    def asked(self, now: float) -> None:
        """Notes that what `ask` returned is on its way to whoever has the blob."""
        self._moved_at = now

    def wait_s(self, now: float) -> float:
        """Returns for how long there is nothing to ask for, unless a chunk comes."""
        return max(0.0, self._moved_at + self._patience_s - now)

    def give_up(self) -> None:
        """Asks for nothing any more: nobody may have the blob now."""
        self.is_over = True
