"""The processes of a laboratory: started, killed, stopped and started again, and all that they say kept.

What a program tells of itself is read from its standard output and stamped with the laboratory's own
monotonic clock, since the program's may jump. Each leads a process group with all that it starts.
"""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LINE_BYTES = 4 << 20
AGAIN_S = 1.0  # after which one that ended by itself is started again, as a supervisor would


class Program:
    """One process, which is started again when it ends by itself.

    Args:
        name: In all that is kept.
        command: Its command line.
        log: Gets its standard error, and what it prints that nobody reads.
        heard: Gets every line of its standard output.
        ended: Gets its exit status when it ends by itself.
        environment: Beside this process's own.
        given: Its standard input.

    Attributes:
        num_starts: How often it was started; each is heard as an event of its own.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        heard: Callable[[str, bytes], None],
        ended: Callable[[str, int], None],
        environment: Mapping[str, str] | None = None,
        given: bytes = b"",
    ) -> None:
        self.name = name
        self._command = command
        self._log = log
        self._heard = heard
        self._ended = ended
        self.num_starts = 0
        self._environment = {**os.environ, **(environment or {})}
        self._given = given
        self._process: Process | None = None
        self._readers: set[asyncio.Task[None]] = set()
        self._is_wanted = False
        self._is_killed = False
        self._lock = asyncio.Lock()  # two that start it at once would leave one that nobody knows

    @property
    def pid(self) -> int | None:
        """Returns the process number; None where it does not run."""
        process = self._process
        return process.pid if process and process.returncode is None else None

    async def start(self) -> None:
        """Starts it, where it does not run."""
        async with self._lock:
            if self.pid is None:
                self._is_wanted, self._is_killed = True, False
                await self._start()

    async def _start(self) -> None:
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE if self._given else DEVNULL, stdout=PIPE, stderr=log,
                env=self._environment, start_new_session=True, limit=LINE_BYTES,
            )  # fmt: skip
        self._process = process
        self.num_starts += 1
        self._heard(self.name, b'{"event":"started"}\n')
        if process.stdin is not None:
            process.stdin.write(self._given)
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
            process.stdin.close()
        reader = asyncio.create_task(self._read(process))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)

    async def kill(self, *, alone: bool = False) -> None:
        """Kills it, and unless it is to go `alone` all that it started; it stays dead until `start`."""
        async with self._lock:
            self._is_killed = True
            process = self._process
            if process is None or process.returncode is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
            await process.wait()

    def kill_children(self) -> int:
        """Kills what it started, and returns how many they were."""
        pids = children_of(self.pid) if self.pid is not None else []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    def signal_group(self, number: signal.Signals) -> None:
        """Sends a signal to it and to all that it started."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def stop(self, within_s: float) -> bool:
        """Asks it to end, kills what is left then, and returns whether it ended in time."""
        async with self._lock:
            self._is_wanted, self._is_killed = False, True
            process = self._process
        if process is None:
            return True
        is_in_time = True
        try:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                async with asyncio.timeout(within_s):
                    await process.wait()
        except TimeoutError:
            is_in_time = False
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        await asyncio.gather(*self._readers, return_exceptions=True)
        return is_in_time

    async def _read(self, process: Process) -> None:
        assert process.stdout
        while line := await process.stdout.readline():
            self._heard(self.name, line)
        status = await process.wait()
        if self._is_killed or process is not self._process:
            return
        self._ended(self.name, status)
        await asyncio.sleep(AGAIN_S)
        async with self._lock:
            if self._is_wanted and not self._is_killed and process is self._process:
                await self._start()


def children_of(pid: int) -> list[int]:
    """Returns the other processes of the group that a process leads (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended in between
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == pid and path.parent.name != str(pid):
                found.append(int(path.parent.name))
    return found
