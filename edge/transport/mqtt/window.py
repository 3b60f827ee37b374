"""How many publishes are under way on one connection, and which of them goes alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Window:
    """Places for publishes without acknowledgement, given out in the order in which they are asked for.

    Args:
        size: How many there are.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._places = asyncio.Semaphore(size)
        self._loner = asyncio.Lock()  # two that gather all places would wait for each other

    @asynccontextmanager
    async def place(self, *, is_alone: bool) -> AsyncIterator[None]:
        """Holds a place; one that is to be alone waits until it has them all."""
        if not is_alone:
            async with self._places:
                yield
            return
        async with self._loner:
            num_held = 0
            try:
                while num_held < self._size:
                    await self._places.acquire()
                    num_held += 1
                yield
            finally:
                for _ in range(num_held):
                    self._places.release()
