"""Two devices of one name, as processes, over Mosquitto: the later one is told, the earlier goes on."""

import subprocess

import pytest

pytestmark = [pytest.mark.broker, pytest.mark.torch, pytest.mark.timeout(240)]


@pytest.fixture(params=["5", "3.1.1"])
def protocol(request):
    return ["--protocol", request.param]


def num_accepted(programs, name):
    return programs.log(name).count("accepted: ")


def test_a_copied_state_folder_is_told_and_ends_and_the_first_goes_on(programs, protocol):
    programs.serve("--steps", "1", *protocol)
    first = programs.join("lamp", *protocol)
    programs.until_logged("lamp", "accepted: ")
    subprocess.run(["cp", "-a", programs.folder / "lamp", programs.folder / "copied"], check=True)
    own = ["--data", "lamp.jsonl", "--device-id", "lamp", "--state", "copied"]
    copied = programs.start("copied", "join", *programs.common, *own, *protocol)
    assert copied.wait(timeout=60) == 1
    (line,) = [one for one in programs.log("copied").splitlines() if one.startswith("tunefleet: ")]
    assert "device lamp of fleet home is running already, from a copy of this state folder on " in line
    assert "stop that one first, or join as another device, with a new --state and --device-id" in line
    programs.until_logged("lamp", "a copy of this state folder on ")
    num_before = num_accepted(programs, "lamp")
    while num_accepted(programs, "lamp") < num_before + 2:
        programs.until_logged("lamp", "accepted: ")
        assert first.poll() is None
    assert "the connection is lost" not in programs.log("lamp")


def test_one_name_with_two_keys_is_told_on_both_sides_and_the_first_goes_on(programs):
    programs.serve("--steps", "1")
    first = programs.join("lamp")
    programs.until_logged("lamp", "accepted: ")
    own = ["--data", "lamp.jsonl", "--device-id", "lamp", "--state", "other"]
    programs.start("other", "join", *programs.common, *own)
    programs.until_logged("other", "answers under this name")
    programs.until_logged("lamp", "says that it is here under this name")
    num_before = num_accepted(programs, "lamp")
    while num_accepted(programs, "lamp") < num_before + 2:
        programs.until_logged("lamp", "accepted: ")
        assert first.poll() is None
    assert "the connection is lost" not in programs.log("lamp")
    assert "accepted: " not in programs.log("other")
