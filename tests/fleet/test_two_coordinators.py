"""Two coordinators of one fleet, as processes, over Mosquitto: one serves, the other is told and ends."""

import json
import signal
import subprocess
import time

import pytest

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]


@pytest.fixture(params=["5", "3.1.1"])
def protocol(request):
    return ["--protocol", request.param]


def serve(programs, name, *flags):
    """A coordinator with a state folder and a log of its own name."""
    return programs.start(name, "serve", *programs.common, "--state", name, "--steps", "1", *flags)


def copy(programs, old, new):
    subprocess.run(["cp", "-a", programs.folder / old, programs.folder / new], check=True)


def key_of(programs, name):
    return programs.log(name).split("coordinator key ")[1][:16]


def error_of(programs, name):
    """The line that it ended with."""
    (line,) = [one for one in programs.log(name).splitlines() if one.startswith("tunefleet: ")]
    return line


@pytest.mark.torch
def test_the_second_is_told_who_is_there_and_the_first_goes_on(programs, protocol):
    serve(programs, "first", *protocol)
    programs.until_logged("first", "coordinator key")
    copy(programs, "first", "copied")
    for name in ("second", "copied"):
        assert serve(programs, name, *protocol).wait(timeout=60) == 1
        line = error_of(programs, name)
        assert "fleet home is served already by the coordinator on " in line
        assert f"key {key_of(programs, 'first')}…" in line
        assert "at version 0" in line
        assert ("from a copy of this state folder" in line) == (name == "copied")
        assert str(programs.folder) not in line
        assert len(line.encode()) <= 300
    assert "a copy of this state folder on " in programs.log("first")  # and who it was that asked
    programs.join("lamp")
    programs.until_logged("first", "version 1: ")
    assert "lost" not in programs.log("first")


def test_of_two_copies_that_start_at_once_one_is_left(programs, protocol):
    founding = serve(programs, "one", *protocol)
    programs.until_logged("one", "coordinator key")
    founding.send_signal(signal.SIGTERM)
    founding.wait(timeout=60)
    copy(programs, "one", "two")
    both = [serve(programs, name, *protocol) for name in ("one", "two")]
    deadline = time.monotonic() + 60
    while sum(process.poll() is None for process in both) == 2:
        assert time.monotonic() < deadline, programs.log("one") + programs.log("two")
        time.sleep(0.1)
    time.sleep(3)  # a fight would go on
    ended = [name for name, process in zip(("one", "two"), both, strict=True) if process.poll() == 1]
    assert len(ended) == 1
    line = error_of(programs, ended[0])
    assert "served already by the coordinator" in line or "lost its place to " in line


def test_of_two_new_fleets_of_one_name_that_are_founded_at_once_both_are_told_at_least(programs, protocol):
    both = [serve(programs, name, *protocol) for name in ("one", "two")]
    deadline = time.monotonic() + 60
    told = ("says that it is here under this name", "answers under this name", "is served already by")
    while not all(any(text in programs.log(name) for text in told) for name in ("one", "two")):
        assert time.monotonic() < deadline, programs.log("one") + programs.log("two")
        time.sleep(0.1)
    time.sleep(3)  # a fight would go on
    assert any(process.poll() is None for process in both)
    assert all("the connection is lost" not in programs.log(name) for name in ("one", "two"))


def test_one_that_was_out_of_touch_and_replaced_says_so_and_ends(programs, protocol):
    """Its machine slept, and the same state was served from another one meanwhile."""
    old = serve(programs, "old", *protocol)
    programs.until_logged("old", "coordinator key")
    old.send_signal(signal.SIGSTOP)
    copy(programs, "old", "new")
    begun = time.monotonic()
    new = serve(programs, "new", *protocol)
    programs.until_logged("new", "coordinator key")  # nobody answered
    assert time.monotonic() - begun < 40
    old.send_signal(signal.SIGCONT)
    assert old.wait(timeout=60) == 1
    line = error_of(programs, "old")
    assert "this coordinator lost its place to the coordinator on " in line
    assert "from a copy of this state folder" in line
    time.sleep(2)
    assert new.poll() is None


def test_a_killed_coordinator_comes_back_whatever_its_presence_says(programs, mosquitto):
    first = serve(programs, "state")
    programs.until_logged("state", "coordinator key")
    first.kill()
    first.wait()
    presence = json.dumps({"online": True, "epoch": int(time.time() * 1000)})
    topic = "tunefleet/v2/home/coordinator"
    publish = ["mosquitto_pub", "-p", str(mosquitto), "-t", topic, "-r", "-q", "1", "-m", presence]
    subprocess.run(publish, check=True)
    (programs.folder / "state.log").unlink()
    begun = time.monotonic()
    again = serve(programs, "state")
    programs.until_logged("state", "coordinator key")
    assert time.monotonic() - begun < 40
    again.send_signal(signal.SIGTERM)
    assert again.wait(timeout=60) == 0
