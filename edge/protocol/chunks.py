"""Payloads in chunks, and ranges of chunk numbers as they stand in `want` and `receipt`.

A range is (first, one after the last). Ranges that come from outside are clipped to the payload before
anything walks them, so that a hostile range costs nothing.
"""

from collections.abc import Iterable, Iterator, Sequence

from edge.protocol.messages import Range

CHUNK_BYTES = 64 * 1024  # every broker takes it: AWS IoT ends at 128 KB, EMQX at 1 MB


def num_chunks(size_bytes: int, chunk_bytes: int) -> int:
    """Returns how many chunks hold `size_bytes`; the last may be short, an empty payload has none."""
    return -(-size_bytes // chunk_bytes)


def chunk_length(number: int, size_bytes: int, chunk_bytes: int) -> int:
    """Bytes of chunk `number`; 0 or less for a number outside the payload."""
    return min(chunk_bytes, size_bytes - number * chunk_bytes) if number >= 0 else 0


def split_chunks(payload: bytes, chunk_bytes: int) -> Iterator[bytes]:
    """Yields the chunks of `payload` in order."""
    for start in range(0, len(payload), chunk_bytes):
        yield payload[start : start + chunk_bytes]


def missing_ranges(present: Sequence[object], max_ranges: int = 256) -> tuple[Range, ...]:
    """Returns the ranges of `present` that are false, the first `max_ranges`: a receipt stays small."""
    found: list[Range] = []
    start = None
    for number, here in enumerate(present):
        if here and start is not None:
            found.append((start, number))
            start = None
            if len(found) == max_ranges:
                return tuple(found)
        elif not here and start is None:
            start = number
    return (*found, (start, len(present))) if start is not None else tuple(found)


def merge_ranges(ranges: Iterable[Range], total: int) -> tuple[Range, ...]:
    """Returns the union of `ranges` within 0 … `total` - 1: sorted, not touching, none empty."""
    merged: list[Range] = []
    for start, end in sorted((max(start, 0), min(end, total)) for start, end in ranges):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)


def first_chunks(ranges: Iterable[Range], count: int) -> tuple[Range, ...]:
    """Returns the first `count` chunks of `ranges`."""
    taken: list[Range] = []
    for start, end in ranges:
        if count <= 0:
            break
        taken.append((start, min(end, start + count)))
        count -= taken[-1][1] - start
    return tuple(taken)


def chunk_numbers(ranges: Iterable[Range]) -> Iterator[int]:
    """Yields every chunk number of `ranges`, which `merge_ranges` has clipped."""
    for start, end in ranges:
        yield from range(start, end)


def without_chunk(ranges: Iterable[Range], number: int) -> tuple[Range, ...]:
    """Returns `ranges` without one chunk."""
    left = ((start, end) for one in ranges for start, end in _around(one, number))
    return tuple((start, end) for start, end in left if start < end)


def _around(one: Range, number: int) -> tuple[Range, ...]:
    return ((one[0], number), (number + 1, one[1])) if one[0] <= number < one[1] else (one,)
