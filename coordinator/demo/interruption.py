"""What ends the demo from outside: Ctrl-C, SIGTERM, a closed terminal.

The first signal cancels what is under way, whose blocks then end the child processes in order; each further
one cancels their waiting, and what they wait for is killed. Where no event loop runs, a signal is a
KeyboardInterrupt, whichever it was.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
R = TypeVar("R")


class Interruption:
    """Takes the signals that end a program, while the context is entered; those that are ignored stay so."""

    def __init__(self) -> None:
        self.number: int | None = None  # of the first signal
        self._before: dict[int, Any] = {}
        self._cancel: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._take)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._overlook
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._unraisable

    @property
    def status(self) -> int:
        """What a process ends with that a signal has ended, as shells count."""
        return 128 + (self.number or 0)

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Runs `work` to its end in an event loop, with all that it began.

        Raises:
            KeyboardInterrupt: A signal has come; `work` was cancelled.
        """
        try:
            with contextlib.closing(work):
                result = asyncio.run(self._cancellable(work))
        except asyncio.CancelledError:
            if self.number is None:
                raise
            raise KeyboardInterrupt from None
        finally:
            self._cancel = None
        self.check()
        return result

    def check(self) -> None:
        """Raises a KeyboardInterrupt if a signal has come that nobody has noticed."""
        if self.number is not None:
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """Ignores all further signals until the process ends: what is left to do is short."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)
        self._before.clear()

    async def _cancellable(self, work: Coroutine[Any, Any, R]) -> R:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        self.check()
        return await work

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if self._cancel is None:
            raise KeyboardInterrupt
        with contextlib.suppress(RuntimeError):  # the loop has just been closed
            self._cancel()

    def _overlook(self, lost: "sys.UnraisableHookArgs") -> None:
        # Raised inside a weak reference's callback an interrupt is dropped by Python; `check` finds it.
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            self._unraisable(lost)
