"""The demo is ended from outside, in each phase: nothing is left running, and a line says what is kept."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from importlib.util import find_spec
from pathlib import Path

import pytest

NEEDED = ("torch", "transformers", "peft", "amqtt", "matplotlib")
pytestmark = [
    pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason="needs the torch, broker and demo extras"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc for processes"),
]

GONE_WITHIN_S = 5.0
WHOLE = "import tunefleet; tunefleet.main()"  # as a user runs it, with what follows as its arguments
SMALL = """
import sys
from pathlib import Path
import typer
from converters.errors import TunefleetError
from coordinator.demo.command import present
from coordinator.demo.household import FLEET
from coordinator.demo.plan import DemoPlan, Member
from edge.backends.toy import make_toy_base

def main(out: Path, max_versions: int):
    plan = DemoPlan(
        members=(Member(FLEET[0], "toy", 1.0),), notes=(), num_versions=max_versions, min_updates=1,
        num_own=12, num_held_out=12, num_calibration=6, buffer_size=1, steps=2,
        model=make_toy_base(out.with_name("base")), targets=("q_proj", "v_proj"),
    )
    try:
        present(plan, out, as_json=False)
    except TunefleetError as error:  # as tunefleet.main
        sys.exit(f"tunefleet: {error}")

typer.run(main)
"""
ALONE, TOGETHER, TERMINATED = "Ctrl-C to the demo alone", "Ctrl-C to all in its terminal", "SIGTERM"
WAYS = (ALONE, TOGETHER, TERMINATED)


class Running:
    """A demo as a process of its own; its processes are known by a mark in their environment."""

    def __init__(self, folder: Path, script: str, *arguments: str) -> None:
        self.out = folder / "demo"
        self.mark = f"TUNEFLEET_TEST={uuid.uuid4()}"
        self.said: list[str] = []
        name, _, value = self.mark.partition("=")
        self.errors = folder / "errors"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", script, *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {name: value, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *exc: object) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate()

    def until(self, pattern: str) -> None:
        """Waits for a line that matches."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.said.append(line)
            if re.search(pattern, line):
                return
        raise AssertionError(f"ended before {pattern!r}: {self.said}, {self.errors.read_text()}")

    def processes(self) -> dict[int, str]:
        """All that runs, with its command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it has ended, or is another user's
        return found

    def child(self, words: str) -> int:
        """The process whose command line holds some words."""
        return next(pid for pid, line in self.processes().items() if words in line)

    def end(self, way: str) -> None:
        number = signal.SIGTERM if way == TERMINATED else signal.SIGINT
        (os.killpg if way == TOGETHER else os.kill)(self.process.pid, number)

    def check_gone(self) -> None:
        """Every process of the demo is gone in time."""
        deadline = time.monotonic() + GONE_WITHIN_S
        while left := self.processes():
            assert time.monotonic() < deadline, left
            time.sleep(0.05)

    def last_words(self) -> str:
        """What it said on its standard error, and that it left no traceback anywhere."""
        assert self.process.stdout
        self.said += self.process.stdout
        errors = self.errors.read_text()
        assert "Traceback" not in errors + "".join(self.said)
        return errors


def small(folder: Path, max_versions: int) -> Running:
    return Running(folder, SMALL, str(folder / "demo"), str(max_versions))


def check_stopped(demo: Running, way: str, *, is_kept: bool) -> None:
    demo.end(way)
    demo.check_gone()
    assert demo.process.wait() == (143 if way == TERMINATED else 130)
    (line,) = demo.last_words().splitlines()
    if is_kept:
        assert f"tunefleet: stopped; kept in {demo.out}/: " in line
        assert (demo.out / "state" / "journal.sqlite").is_file()
    else:
        assert line == "tunefleet: stopped before the fleet's first version; nothing is kept"
        assert not demo.out.exists()


@pytest.mark.parametrize("way", WAYS)
def test_before_anything_runs(tmp_path: Path, way: str) -> None:
    with small(tmp_path, 1) as demo:
        demo.until("The demo's folder is")
        check_stopped(demo, way, is_kept=False)


@pytest.mark.llama
@pytest.mark.skipif(not (find_spec("llama_cpp") and find_spec("gguf")), reason="needs the llama extra")
@pytest.mark.parametrize("way", WAYS)
def test_while_the_models_are_quantised(tmp_path: Path, way: str) -> None:
    with Running(tmp_path, WHOLE, "demo", "--out", str(tmp_path / "demo")) as demo:
        demo.until("The model as GGUF")
        check_stopped(demo, way, is_kept=False)


@pytest.mark.parametrize("way", WAYS)
def test_while_the_devices_start(tmp_path: Path, way: str) -> None:
    with small(tmp_path, 1) as demo:
        demo.until("A broker, a coordinator and")
        check_stopped(demo, way, is_kept=False)


@pytest.mark.parametrize("way", WAYS)
def test_while_the_fleet_learns(tmp_path: Path, way: str) -> None:
    with small(tmp_path, 100_000) as demo:
        demo.until("version [1-9]")
        check_stopped(demo, way, is_kept=True)


@pytest.mark.parametrize("way", WAYS)
def test_while_it_is_scored(tmp_path: Path, way: str) -> None:
    with small(tmp_path, 1) as demo:
        demo.until("Each device alone")
        check_stopped(demo, way, is_kept=True)


@pytest.mark.parametrize("way", WAYS)
def test_while_the_page_is_drawn(tmp_path: Path, way: str) -> None:
    with small(tmp_path, 1) as demo:
        demo.until("Plots and page")
        check_stopped(demo, way, is_kept=True)


@pytest.mark.torch
def test_a_fleet_of_real_backends_ends_with_ctrl_c(tmp_path: Path) -> None:
    with Running(tmp_path, WHOLE, "demo", "--out", str(tmp_path / "demo")) as demo:
        demo.until("version [2-9]")
        check_stopped(demo, TOGETHER, is_kept=True)


def test_a_device_that_does_not_react_is_killed(tmp_path: Path) -> None:
    with small(tmp_path, 100_000) as demo:
        demo.until("version [1-9]")
        os.kill(demo.child("edge.device.process"), signal.SIGSTOP)
        check_stopped(demo, ALONE, is_kept=True)


def test_a_second_ctrl_c_waits_for_nobody(tmp_path: Path) -> None:
    with small(tmp_path, 100_000) as demo:
        demo.until("version [1-9]")
        os.kill(demo.child("edge.device.process"), signal.SIGSTOP)
        demo.end(ALONE)
        time.sleep(0.2)  # two signals at once are one
        check_stopped(demo, ALONE, is_kept=True)


@pytest.mark.parametrize(("words", "name"), [("edge.device.process", "flat"), ("serve", "coordinator")])
def test_where_one_process_dies_all_end_and_its_name_is_told(tmp_path: Path, words: str, name: str) -> None:
    with small(tmp_path, 100_000) as demo:
        demo.until("version [1-9]")
        os.kill(demo.child(words), signal.SIGKILL)
        demo.check_gone()
        assert demo.process.wait() == 1
        assert f"tunefleet: {name} ended with status -9" in demo.last_words()
