"""Coroutines from plain code: from a script, and from a notebook, whose own event loop runs already."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Any, TypeVar

POLL_S = 0.1
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
    caller = asyncio.current_task()
    begun: SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = SimpleQueue()

    async def main() -> T:
        begun.put((asyncio.get_running_loop(), asyncio.current_task()))
        return await work()

    with ThreadPoolExecutor(1, "tunefleet") as pool:  # leaving waits for the thread
        running = pool.submit(lambda: asyncio.run(main()))
        loop, task = begun.get()
        try:
            while not wait([running], POLL_S).done:
                # asyncio.run's own Ctrl-C only asks its task to end, and that waits for this call.
                if caller is not None and caller.cancelling():
                    _cancel(loop, task)
        except KeyboardInterrupt:
            _cancel(loop, task)
            raise
        return running.result()


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> None:
    assert task is not None  # it said so itself
    if not task.cancelling():
        with contextlib.suppress(RuntimeError):  # it ended just now, and its loop is closed
            loop.call_soon_threadsafe(task.cancel)
