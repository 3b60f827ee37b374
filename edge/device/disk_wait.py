"""Waiting for a disk that says no: full, failing, read-only. A client is there again when it is mended."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from edge.errors import DiskRefused

MAX_PAUSE_S = 60.0
T = TypeVar("T")


async def until_the_disk_takes(
    step: Callable[[], Awaitable[T]],
    warn: Callable[[str], object],
    sleep: Callable[[float], Awaitable[object]],
) -> T:
    """Does a step again and again until the disk takes it, and returns what it comes to.

    Args:
        step: Finds on the disk what an earlier try at it left.
        warn: Told once what the disk says, and again where it says something else.
        sleep: Waits between the tries, at most a minute.
    """
    pause_s, told = 1.0, ""
    while True:
        try:
            return await step()
        except DiskRefused as error:
            if str(error) != told:
                told = str(error)
                warn(f"{told}; trying again until it can")
            await sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
