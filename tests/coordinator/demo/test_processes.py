import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coordinator.demo.processes import ChildFailed, Children, as_arguments


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


DAUGHTER = "import time; print('ready', flush=True); time.sleep(600)"
PARENT = f"""
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.run([sys.executable, "-c", {DAUGHTER!r}])
"""


async def until_ready(log):
    while "ready" not in log.read_text():
        await asyncio.sleep(0.05)


def test_a_child_that_does_not_listen_is_killed_with_all_that_it_started(tmp_path):
    async def run():
        async with Children(tmp_path, 1, command=(sys.executable, "-c")) as children:
            await children.start("deaf", [PARENT])
            await until_ready(tmp_path / "deaf.out")
            return children.pid("deaf")

    group = asyncio.run(run())
    with contextlib.suppress(ProcessLookupError, PermissionError):
        for _ in range(200):
            os.killpg(group, 0)
            time.sleep(0.05)
        pytest.fail("it is still there")


DEMO = f"""
import asyncio, sys
from pathlib import Path
from coordinator.demo.processes import Children

async def run(folder):
    async with Children(folder, 1, command=(sys.executable, "-c"), grace_s=0.5) as children:
        await children.run("gone", ["pass"])
        await children.start("deaf", [{PARENT!r}])
        print(children.pid("deaf"), flush=True)
        await asyncio.sleep(600)

asyncio.run(run(Path(sys.argv[1])))
"""


def test_nothing_outlives_a_demo_that_was_killed(tmp_path):
    command = [sys.executable, "-c", DEMO, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        group = int(demo.stdout.readline())
        asyncio.run(until_ready(tmp_path / "deaf.out"))
        demo.kill()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        for _ in range(200):
            os.killpg(group, 0)
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)
        pytest.fail("it is still there")


def test_where_one_fails_none_is_started_any_more(tmp_path):
    async def run():
        slots = asyncio.Semaphore(1)

        async def one(children, number):
            async with slots:
                await children.run(f"child-{number}", ["raise SystemExit(3)" if number == 0 else DAUGHTER])

        async with Children(tmp_path, 1, command=(sys.executable, "-c")) as children:
            await asyncio.gather(*(one(children, number) for number in range(3)))

    with pytest.raises(ChildFailed, match="child-0 ended with status 3"):
        asyncio.run(run())
    assert "ready" not in "".join(path.read_text() for path in tmp_path.glob("*.out"))


def test_a_child_that_was_killed_is_started_again_and_goes_on_in_its_files(tmp_path):
    async def run():
        async with Children(tmp_path, 1, command=(sys.executable, "-c")) as children:
            await children.start("twice", [DAUGHTER])
            await until_ready(tmp_path / "twice.out")
            await children.kill("twice")
            return await children.run("twice", ["print('again')"])

    assert asyncio.run(run()) == b"ready\nagain\n"


def test_options_that_are_not_given_are_no_arguments():
    assert as_arguments({"base": Path("here"), "adapter": None, "steps": 3}) == [
        "--base",
        "here",
        "--steps",
        "3",
    ]
