"""Coroutines from plain code: from a script, and from a notebook, whose own event loop runs already."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


def run_to_end(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine to its end, in a thread of its own where this one's loop runs already.

    Ctrl-C cancels it, and is raised once it has ended, and its child processes with it.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    return _run_beside(work)


def _run_beside(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    begun: SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = SimpleQueue()

    async def main() -> T:
        begun.put((asyncio.get_running_loop(), asyncio.current_task()))
        return await work()

    with ThreadPoolExecutor(1, "tunefleet") as pool:  # leaving waits for the thread
        running = pool.submit(lambda: asyncio.run(main()))
        loop, task = begun.get()
        try:
            return running.result()
        except KeyboardInterrupt:
            assert task is not None  # it said so itself
            with contextlib.suppress(RuntimeError):  # it ended just now, and its loop is closed
                loop.call_soon_threadsafe(task.cancel)
            raise
