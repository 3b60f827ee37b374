import asyncio
import os
import sys

import pytest

from coordinator.demo.processes import ChildFailed, Children


def test_a_child_s_output_comes_back(tmp_path):
    async def run():
        async with Children(tmp_path, 1) as children:
            return await children.run("help", ["--help"])

    assert b"tunefleet" in asyncio.run(run())


def test_a_failing_child_s_last_lines_are_shown(tmp_path):
    async def run():
        async with Children(tmp_path, 1) as children:
            await children.run("oops", ["no-such-command"])

    with pytest.raises(ChildFailed, match=r"oops ended with status 2(.|\n)*no-such-command"):
        asyncio.run(run())


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_leaving_ends_every_child(tmp_path):
    async def run():
        async with Children(tmp_path, 1, command=(sys.executable, "-c")) as children:
            await children.start("sleeper", ["import time; print(1, flush=True); time.sleep(600)"])
            return children.pid("sleeper")

    pid = asyncio.run(run())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
