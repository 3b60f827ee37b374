"""Child processes of the demo and of benchmarks: started, watched, killed where asked, and ended together.

Each child writes to log files of its own, and leads a process group with all that it starts. When the block
is left, by its end, an error or Ctrl-C, every child that still runs is asked to stop; after a grace time, or
when the waiting for it is cancelled, its group is killed: nothing outlives the block. Where this process
itself is killed, `coordinator.demo.guard` does the same.
"""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from coordinator.errors import CoordinatorError
from edge.transport.settings import ENVIRONMENT as BROKER

GRACE_S = 3.0  # all is on disk already, so that a kill loses a few seconds of training
LAST_LINES = 6
TUNEFLEET = (sys.executable, "-P", "-m", "tunefleet")
GUARD = (sys.executable, "-P", "-m", "coordinator.demo.guard")


def as_arguments(options: Mapping[str, object]) -> list[str]:
    """Returns `--name value` for each option that is given; None is not."""
    given = {name: value for name, value in options.items() if value is not None}
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


class ChildFailed(CoordinatorError):  # noqa: N818
    """A child process ended with an error; the message holds its last lines."""


class Children:
    """The child processes under way.

    Args:
        folder: Of the log files.
        threads: For each child's numerical libraries.
        command: What the children run; their arguments come after it.
        grace_s: What each has to end by itself when it is asked to.
    """

    def __init__(
        self, folder: Path, threads: int, command: Sequence[str] = TUNEFLEET, grace_s: float = GRACE_S
    ) -> None:
        self._folder = folder
        self._command = command
        self._grace_s = grace_s
        # Four thread pools on two cores: waiting threads must sleep, not spin.
        self._environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        for variable in BROKER.values():  # the demo has a broker of its own, which needs no password
            self._environment.pop(variable, None)
        self._running: dict[str, Process] = {}
        self._known: set[str] = set()  # names of all that were started
        self._is_over = False
        self._guard: Process | None = None

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._guard = await asyncio.create_subprocess_exec(
            *GUARD, str(self._grace_s), stdin=PIPE, start_new_session=True
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        try:
            await asyncio.gather(*(self.stop(name) for name in list(self._running)))
        finally:
            assert self._guard is not None
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            await self._guard.wait()

    async def start(self, name: str, arguments: Sequence[str]) -> None:
        """Starts a child: what it prints goes to `<name>.out`, what it reports to `<name>.log`.

        One that is started again, after it ended or was killed, goes on in the same files.

        Raises:
            ChildFailed: The block is being left, by another task.
        """
        mode = "ab" if name in self._known else "wb"
        self._known.add(name)
        with self._path(name, "log").open(mode) as log, self._path(name, "out").open(mode) as out:
            self._running[name] = await asyncio.create_subprocess_exec(
                *self._command, *arguments,
                stdin=DEVNULL, stdout=out, stderr=log, env=self._environment,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which then ends them in order
            )  # fmt: skip
        self._tell_guard("+", self._running[name])
        if self._is_over:
            await self.stop(name)
            raise ChildFailed(f"{name} was stopped with the others")

    async def finish(self, name: str) -> bytes:
        """Waits for a child's end and returns what it printed.

        Raises:
            ChildFailed: It ended with an error, or was stopped.
        """
        if await self._running[name].wait() != 0 or name not in self._running:
            self.check(name)
        self._tell_guard("-", self._running.pop(name))
        return self._path(name, "out").read_bytes()

    async def run(self, name: str, arguments: Sequence[str]) -> bytes:
        """Starts a child and waits for it; see `finish`."""
        await self.start(name, arguments)
        return await self.finish(name)

    def check(self, *names: str) -> None:
        """Checks that children still run.

        Raises:
            ChildFailed: One has ended, or was stopped.
        """
        for name in names:
            if name not in self._running:
                raise ChildFailed(f"{name} was stopped with the others")
            status = self._running[name].returncode
            if status is not None:
                raise ChildFailed(
                    f"{name} ended with status {status}, its log is {self._path(name, 'log')}; "
                    f"its last lines:\n{self._last_lines(name)}"
                )

    def pid(self, name: str) -> int:
        """Returns the process number of a child that was started."""
        return self._running[name].pid

    async def stop(self, name: str) -> None:
        """Asks a child to end, and kills what is left of it and of what it started."""
        process = self._running.pop(name)
        try:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._grace_s):
                        await process.wait()
        finally:
            await self._kill_group(process)

    async def kill(self, name: str) -> None:
        """Kills a child and what it started, without a word; it may be started again."""
        await self._kill_group(self._running.pop(name))

    async def _kill_group(self, process: Process) -> None:
        # macOS answers with a PermissionError where only the dead are left of a group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        self._tell_guard("-", process)

    def _tell_guard(self, mark: str, process: Process) -> None:
        assert self._guard is not None
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{mark} {process.pid}\n".encode())

    def _path(self, name: str, ending: str) -> Path:
        return self._folder / f"{name}.{ending}"

    def _last_lines(self, name: str) -> str:
        said = (self._path(name, ending).read_text("utf-8", "replace") for ending in ("log", "out"))
        lines = next(
            filter(None, ([line for line in text.splitlines() if line.strip()] for text in said)), []
        )
        return "\n".join(f"  {line}" for line in lines[-LAST_LINES:]) or "  (it said nothing)"
