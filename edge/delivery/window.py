"""The one loop in which chunks leave: as many at a time as the machine that decides gives out."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

Sending = Coroutine[Any, Any, None]  # of one part, to its acknowledgement


async def send_all(begin: Callable[[], Sending | None]) -> None:
    """Sends part after part until there is none, and all are sent.

    Args:
        begin: Returns the sending of one more part, or None where there is none, or enough are under way.
    """
    flying: set[asyncio.Task[None]] = set()
    try:
        while True:
            while (sending := begin()) is not None:
                flying.add(asyncio.create_task(sending))
            if not flying:
                return
            done, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in flying:
            task.cancel()
        await asyncio.gather(*flying, return_exceptions=True)


async def heard(news: asyncio.Event, within_s: float | None) -> bool:
    """Tells whether `news` was set since the last time, or is within `within_s` seconds; then clears it."""
    try:
        async with asyncio.timeout(within_s):
            await news.wait()
    except TimeoutError:
        return False
    news.clear()
    return True
