"""Work on many modules, shared out among threads.

BLAS is held to one thread of its own meanwhile: it divides each small product and waits for its threads by
spinning. On a machine where other programs run that makes a merge slower than with one core.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import ThreadpoolController

T = TypeVar("T")
R = TypeVar("R")


def count_processors() -> int:
    """Counts the processors that this process may use, by OMP_NUM_THREADS or by what the system says."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told):
        return int(told)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share(function: Callable[[T], R], items: Sequence[T], *, is_small: bool = False) -> list[R]:
    """Returns the function's results in order of `items`.

    Args:
        function: Must spend its time in NumPy calls that release the GIL.
        items: Each thread takes every n-th.
        is_small: All of them together are not worth other threads, which cost some milliseconds.
    """
    count = 1 if is_small else min(count_processors(), len(items))
    if count < 2:
        return [function(item) for item in items]
    with (
        ThreadpoolController().limit(limits=1, user_api="blas"),
        ThreadPoolExecutor(count) as pool,
    ):
        parts = list(pool.map(lambda first: [function(item) for item in items[first::count]], range(count)))
    return [parts[number % count][number // count] for number in range(len(items))]
