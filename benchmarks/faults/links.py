"""A TCP proxy between one program and its broker that does what networks do.

delay_s, bytes_per_s   every block comes late, or slowly
is_up_open, …          a partition of either direction: what is sent waits, as TCP would send it again
freeze                 connections that are there stay half open for ever, and new ones work
cut                    connections break at once, with a reset
cut_after              connections break after so many bytes of both directions together, in midst of any
refuse                 nobody answers the door
"""

import asyncio
import contextlib
import math
import socket
import struct
from collections.abc import Callable
from typing import Literal, Self

BLOCK_BYTES = 16 * 1024
Direction = Literal["up", "down"]  # up: from the program to the broker


class Link:
    """One program's way to the broker.

    Args:
        port: Where the broker listens, on this machine.

    Attributes:
        port: Where the program is to connect.
        delay_s: Of every block.
        bytes_per_s: In either direction.
        cut_after: Draws for each new connection after how many bytes it breaks; None never does.
        num_connections: That were ever made.
        num_cuts: Connections that `cut_after` has broken.
        num_bytes: That went through, both ways.
    """

    def __init__(self, port: int) -> None:
        self.port = 0
        self.delay_s = 0.0
        self.bytes_per_s = math.inf
        self.cut_after: Callable[[], int] | None = None
        self.num_connections = self.num_cuts = self.num_bytes = 0
        self._broker_port = port
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        for event in self._open.values():
            event.set()
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_refusing = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=BLOCK_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Breaks every connection."""
        for connection in list(self._connections):
            connection.abort()

    def freeze(self) -> None:
        """Leaves the connections that are there half open: nothing passes, and nobody is told."""
        for connection in self._connections:
            connection.is_frozen = True

    def block(self, direction: Direction) -> None:
        """Holds back what goes in one direction."""
        self._open[direction].clear()

    def refuse(self) -> None:
        """Breaks every connection, and each new one at once."""
        self._is_refusing = True
        self.cut()

    def mend(self) -> None:
        """Lets everything pass at once; what was held back, too. Frozen connections stay frozen."""
        self.delay_s, self.bytes_per_s, self._is_refusing = 0.0, math.inf, False
        for event in self._open.values():
            event.set()

    async def _accept(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            if self._is_refusing:
                return
            far, forth = await asyncio.open_connection("127.0.0.1", self._broker_port, limit=BLOCK_BYTES)
            self.num_connections += 1
            connection = Connection(back, forth, self.cut_after() if self.cut_after else None)
            self._connections.add(connection)
            try:
                pumps = [self._pump(connection, "up", near, forth), self._pump(connection, "down", far, back)]
                await _until_first(pumps)
            finally:
                self._connections.discard(connection)
                connection.abort()
        except OSError:  # the broker is not there
            pass
        except asyncio.CancelledError:  # the link is left; asyncio's streams would tell of it
            pass
        finally:
            reset(back)
            self._tasks.discard(task)

    async def _pump(
        self,
        connection: "Connection",
        direction: Direction,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
    ) -> None:
        """Carries one direction until it ends, or the connection breaks."""
        while data := await source.read(BLOCK_BYTES):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            await self._open[direction].wait()
            if connection.is_frozen:
                await asyncio.Event().wait()
            if self.bytes_per_s < math.inf:
                await asyncio.sleep(len(data) / self.bytes_per_s)
            passed = connection.take(data)
            self.num_bytes += len(passed)
            target.write(passed)
            await target.drain()
            if connection.is_spent:
                self.num_cuts += 1
                return


class Connection:
    """One connection through a link.

    Args:
        near: Writes to the program.
        far: Writes to the broker.
        budget: Bytes that pass before it breaks; None is no bound.
    """

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter, budget: int | None) -> None:
        self.is_frozen = False
        self._ends = (near, far)
        self._budget = budget

    @property
    def is_spent(self) -> bool:
        """Tells whether it has to break now."""
        return self._budget == 0

    def take(self, data: bytes) -> bytes:
        """Returns what of `data` still passes."""
        if self._budget is None:
            return data
        passed = data[: self._budget]
        self._budget -= len(passed)
        return passed

    def abort(self) -> None:
        """Breaks it, both ways, with a reset."""
        for end in self._ends:
            reset(end)


def reset(writer: asyncio.StreamWriter) -> None:
    """Breaks a connection; what was written has gone out, as far as its peer read it."""
    with contextlib.suppress(OSError):
        found = writer.get_extra_info("socket")
        if found is not None and found.fileno() >= 0:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _until_first(loops: list) -> None:  # type: ignore[type-arg]
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
