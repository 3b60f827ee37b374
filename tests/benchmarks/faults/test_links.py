"""The laboratory's links do to a connection what they say, and to no other."""

import asyncio
import contextlib
from contextlib import asynccontextmanager

import pytest

from benchmarks.faults.links import Link


@asynccontextmanager
async def echo():
    """A link to a server that sends back what it gets, and `connect()` to it."""
    clients = []

    async def answer(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with Link(server.sockets[0].getsockname()[1]) as link:

        async def connect():
            clients.append(await asyncio.open_connection("127.0.0.1", link.port))
            return clients[-1]

        yield link, connect
        for _, writer in clients:
            writer.close()
    server.close()


async def passes(reader, writer, data=b"hello"):
    """Whether what is sent comes back, before the connection breaks or half a second is over."""
    try:
        async with asyncio.timeout(0.5):
            writer.write(data)
            return await reader.readexactly(len(data)) == data
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        return False


async def received(reader):
    """All that comes before the connection breaks."""
    found = b""
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            found += data
    return found


def test_a_link_that_is_left_alone_carries_every_byte():
    async def check():
        async with echo() as (_, connect):
            assert await passes(*await connect(), bytes(range(256)) * 1000)

    asyncio.run(check())


def test_a_connection_breaks_after_its_bytes_and_the_next_has_its_own():
    async def check():
        async with echo() as (link, connect):
            budgets = iter([1001, 100_000])
            link.cut_after = lambda: next(budgets)
            reader, writer = await connect()
            writer.write(b"x" * 900)
            assert len(await received(reader)) <= 101  # 900 went up
            assert link.num_cuts == 1
            assert await passes(*await connect())

    asyncio.run(check())


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_partition_holds_bytes_back_and_loses_none(direction):
    async def check():
        async with echo() as (link, connect):
            reader, writer = await connect()
            assert await passes(reader, writer)
            link.block(direction)
            assert not await passes(reader, writer, b"late")
            link.mend()
            assert await reader.readexactly(4) == b"late"

    asyncio.run(check())


def test_a_frozen_connection_stays_silent_and_a_new_one_works():
    async def check():
        async with echo() as (link, connect):
            old = await connect()
            assert await passes(*old)
            link.freeze()
            assert not await passes(*old)
            link.mend()
            assert not await passes(*old)
            assert await passes(*await connect())

    asyncio.run(check())


def test_a_link_that_refuses_breaks_old_and_new_connections():
    async def check():
        async with echo() as (link, connect):
            old = await connect()
            assert await passes(*old)
            link.refuse()
            assert not await passes(*old)
            assert not await passes(*await connect())
            link.mend()
            assert await passes(*await connect())

    asyncio.run(check())
