"""One worker process, and the lines to and from it; how it died, and of what."""

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

import msgspec
from msgspec import structs

import converters.errors
import edge.errors
from converters.errors import TunefleetError
from edge.backends import resolve_backend
from edge.choices import BackendName, Precision
from edge.errors import BackendError, OutOfMemory
from edge.storage.disk import room_for
from edge.training.requests import Completions, Evaluation, Failed, Loaded, Part, Reply, Request, Result

LINE_BYTES = 64 << 20  # a long run's result holds the loss of every step
LAST_WORDS = 8  # lines of stderr
CLOSING_S = 30.0  # for a checkpoint; a process that is still there then is killed
_NOT_PLAIN = ("MissingExtra", "Rejected")  # built from more than a message
VMSTAT = Path("/proc/vmstat")  # where Linux counts what it killed for want of memory
# What Python, C++, ggml and OpenBLAS say where they end the process, too, instead of raising an error.
_WANT_OF_MEMORY = ("memoryerror", "bad_alloc", "allocate", "memory allocation", "insufficient memory")
R = TypeVar("R", Loaded, Result, Evaluation, Completions)


class Killed(OutOfMemory):
    """The process was killed, or gave up, for all that is known for want of memory."""


class WorkerProcess:
    """One process, and the lines to and from it."""

    loaded: Loaded

    def __init__(self, process: asyncio.subprocess.Process, vmstat: Path) -> None:
        self.process, self.vmstat = process, vmstat
        self.pid = process.pid
        self.is_over = False
        self.num_kills = _count_kills(vmstat)
        self.last_words: deque[str] = deque(maxlen=LAST_WORDS)
        self.listener = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, base: str, backend: BackendName, precision: Precision, vmstat: Path) -> Self:
        """Starts a process and waits until it has loaded the base model.

        Raises:
            TunefleetError: As the process reports it.
            DiskRefused: It cannot be started now: too many files are open.
        """
        chosen = resolve_backend(backend, Path(base))
        # Not from this folder: a file of the user's that is called `random.py` must not be imported.
        command = (sys.executable, "-P", "-m", "edge.training.worker.main", base, chosen.name, precision)
        with room_for("starting the training process", Path(sys.executable).parent):  # too many open files
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=LINE_BYTES,
                # Idle threads must not spin beside another pool's; to be set before a library is loaded.
                env={"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false", **os.environ},
            )
        worker = cls(process, vmstat)
        try:
            worker.loaded = structs.replace(await worker.receive(Loaded), backend_why=chosen.why)
        except BaseException as error:
            worker.kill()
            await worker.close()
            if isinstance(error, Killed):  # a smaller step would not help
                raise OutOfMemory(f"{base}: {error}, while the model was loaded") from error
            raise
        return worker

    def send(self, request: Request) -> None:
        """Sends a request; a process that is over does not read it."""
        assert self.process.stdin
        self.process.stdin.write(msgspec.json.encode(request) + b"\n")

    async def receive(self, kind: type[R], on_part: Callable[[Part], None] = lambda _: None) -> R:
        """Waits for the next whole reply.

        Raises:
            TunefleetError: As the process reports it.
            BackendError: It died.
        """
        assert self.process.stdout
        while (line := await self.process.stdout.readline()).endswith(b"\n"):
            reply = msgspec.json.decode(line, type=Reply)
            if isinstance(reply, Part):
                on_part(reply)
            elif isinstance(reply, kind):
                return reply
            elif isinstance(reply, Failed):
                raise _error(reply)
        raise await self._death()

    def terminate(self) -> None:
        """Asks the process to write a checkpoint and end."""
        self.is_over = True
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def kill(self) -> None:
        """Ends the process at once."""
        self.is_over = True
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def close(self) -> None:
        """Ends the process, by force where it does not end by itself."""
        assert self.process.stdin
        self.process.stdin.close()
        try:
            async with asyncio.timeout(CLOSING_S):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        await self.listener

    async def _listen(self) -> None:
        assert self.process.stderr
        async for line in self.process.stderr:
            self.last_words.append(line.decode(errors="replace").strip())

    async def _death(self) -> BackendError:
        self.is_over = True
        code = await self.process.wait()
        await self.listener
        words = " | ".join(self.last_words) or "it left no message"
        if code not in (-signal.SIGKILL, 128 + signal.SIGKILL):
            kind = Killed if any(word in words.lower() for word in _WANT_OF_MEMORY) else BackendError
            return kind(f"the training process ended with status {code}; its last words: {words}")
        kills = _count_kills(self.vmstat)
        if kills is not None and kills == self.num_kills:
            return BackendError("the training process was killed (SIGKILL), and not for want of memory")
        return Killed("the training process was killed (SIGKILL), most likely for want of memory")


def _count_kills(vmstat: Path) -> int | None:
    # How often Linux has killed for want of memory: it tells such a death from another SIGKILL.
    try:
        counts = dict(line.split() for line in vmstat.read_text().splitlines())
        return int(counts["oom_kill"])
    except (OSError, KeyError, ValueError):
        return None


def _error(reply: Failed) -> TunefleetError:
    kinds = {**vars(converters.errors), **vars(edge.errors)}
    kind = BackendError if reply.error in _NOT_PLAIN else kinds.get(reply.error, BackendError)
    error: TunefleetError = kind(reply.message, whole=reply.whole)
    return error
