"""A fleet as a newcomer starts it, every default in force: the shipped model, Mosquitto, real processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest

SBIN = f"{os.environ['PATH']}:/usr/sbin:/opt/homebrew/sbin"

pytestmark = [pytest.mark.broker, pytest.mark.torch, pytest.mark.timeout(360)]


def devices_of(programs):
    """Who is in each version that was merged."""
    versions = json.loads(programs.report("history", "--json"))["versions"]
    return [sorted(share["device"] for share in one["shares"]) for one in versions if one["shares"]]


def test_one_device_and_every_default_make_version_after_version(programs):
    serving = programs.serve("--max-versions", "3")
    programs.join("laptop")
    assert serving.wait(timeout=120) == 0
    assert devices_of(programs) == [["laptop"]] * 3


def test_two_devices_meet_in_every_version_and_one_goes_on_when_the_other_leaves(programs):
    programs.serve("--json", "--steps", "4")
    programs.until_logged("coordinator", "serving")
    lamp = programs.join("lamp", "--slowdown", "3")
    programs.until_logged("coordinator", '"event":"joined"')
    programs.join("pump")
    programs.until_logged("coordinator", '"num_online":2')
    for version in (2, 3):
        programs.until_logged("coordinator", f'"version":{version},')
    both = devices_of(programs)
    assert ["lamp", "pump"] in both[-2:]
    lamp.send_signal(signal.SIGTERM)
    assert lamp.wait(timeout=60) == 0
    programs.until_logged("coordinator", '"event":"offline"')
    newest = json.loads(programs.report("status", "--json"))["version"]
    programs.until_logged("coordinator", f'"version":{newest + 2},')
    events = [json.loads(line) for line in programs.log("coordinator").splitlines()]
    assert {"serving", "joined", "accepted", "waiting", "version", "offline"} <= {
        one["event"] for one in events
    }
    assert [one["device"] for one in events if one["event"] == "joined"] == ["lamp", "pump"]


def test_a_buffer_that_is_too_large_is_told_by_serve_and_by_status(programs):
    programs.serve("--buffer-size", "4", "--steps", "1")
    programs.join("lamp")
    told = "1 of 4 updates, 1 device online, merging in "
    programs.until_logged("coordinator", told)
    assert told in programs.report("status")
    programs.until_logged("lamp", "waiting: for a version after 0")


@pytest.fixture
def mosquitto_with_password(tmp_path):
    """The URL of a broker that lets in ann with `hunter2@home`, and nobody else."""
    program = shutil.which("mosquitto", path=SBIN)
    if program is None or not shutil.which("mosquitto_passwd"):
        pytest.skip("the programs mosquitto and mosquitto_passwd are not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    users, config = tmp_path / "users", tmp_path / "mosquitto.conf"
    subprocess.run(["mosquitto_passwd", "-c", "-b", users, "ann", "hunter2@home"], check=True)
    access = f"allow_anonymous false\npassword_file {users}\nuser root\n"
    config.write_text(f"listener {port} 127.0.0.1\n{access}")
    with subprocess.Popen([program, "-c", config], stderr=subprocess.DEVNULL) as broker:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"mqtt://127.0.0.1:{port}"
        broker.terminate()


def test_a_password_is_nowhere_to_be_seen(make_programs, mosquitto_with_password, tmp_path):
    url = mosquitto_with_password
    (tmp_path / "password").write_text("hunter2@home\n")
    environment = {"TUNEFLEET_BROKER": url, "TUNEFLEET_BROKER_USER": "ann"}
    programs = make_programs(environment=environment | {"TUNEFLEET_BROKER_PASSWORD_FILE": "password"})
    flags = ["--log-level", "debug"]
    processes = [programs.serve("--steps", "1", *flags), programs.join("lamp", *flags)]
    programs.until_logged("coordinator", "version 1: 1 update of lamp")
    for process in processes:
        listed = subprocess.check_output(["ps", "-ww", "-o", "args=", "-p", str(process.pid)], text=True)
        assert "hunter" not in listed
    wrong = make_programs(url.replace("//", "//ann:hunter3@"))
    refused = wrong.start("refused", "serve", *wrong.common, "--state", "other")
    assert refused.wait(timeout=60) == 1
    assert "check user name, password and rights" in programs.log("refused")
    assert "every user of this machine can read the broker's password" in programs.log("refused")
    for name in ("coordinator", "lamp", "refused"):
        assert "hunter" not in programs.log(name)
