"""What docs/operations.md says, done with processes: back up, restore, move to another broker or machine."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from edge.backends.toy import make_toy_base

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]
NAMES = ("lamp", "pump")


@pytest.fixture
def fleet(programs):
    """A fleet on a tiny base, so that a version takes a second."""
    return Fleet(programs)


class Fleet:
    """A coordinator and two devices that can be ended and started again in their folders."""

    def __init__(self, programs):
        self.programs = programs
        self.processes = {}
        base = make_toy_base(programs.folder / "base")
        programs.common[programs.common.index("--base") + 1] = str(base)

    def serve(self, state="coordinator"):
        flags = ("--steps", "5", "--rank", "4")
        self.processes["coordinator"] = self.programs.start(
            "coordinator", "serve", *self.programs.common, "--state", state, *flags
        )

    def join(self):
        for name in NAMES:
            flags = ("--backend", "toy", "--slowdown", "20")
            self.processes[name] = self.programs.join(name, *flags)

    def end(self, number=signal.SIGTERM, names=("coordinator", *NAMES)):
        for name in names:
            self.processes[name].send_signal(number)
        codes = [self.processes[name].wait(timeout=60) for name in names]
        assert number == signal.SIGKILL or codes == [0] * len(names)

    def forget_logs(self):
        for path in self.programs.folder.glob("*.log"):
            path.write_text("")

    def until_version(self, number):
        self.programs.until_logged("coordinator", f" version {number}: ")

    def until_both_count_after(self, number):
        """Both devices are in versions made after that one."""
        deadline = time.monotonic() + 90
        while self.contributors(number) != set(NAMES):
            assert time.monotonic() < deadline, {name: self.programs.log(name) for name in NAMES}
            time.sleep(0.2)

    def contributors(self, after):
        versions = json.loads(self.programs.report("history", "--json"))["versions"]
        return {share["device"] for one in versions if one["version"] > after for share in one["shares"]}

    def status(self):
        return json.loads(self.programs.report("status", "--json"))

    def run(self, *words):
        command = [sys.executable, "-m", "tunefleet", *words]
        return subprocess.run(
            command, cwd=self.programs.folder, capture_output=True, text=True, check=False,
            env=self.programs.environment,
        )  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path):
    """The URL of another broker, which is empty."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/opt/homebrew/sbin")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen([program, "-p", str(port)], stderr=subprocess.DEVNULL) as broker:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"mqtt://127.0.0.1:{port}"
        broker.terminate()


def restore(programs, backup):
    shutil.rmtree(programs.folder / "coordinator")
    subprocess.run(["cp", "-a", backup, "coordinator"], cwd=programs.folder, check=True)


def test_devices_follow_a_coordinator_that_was_restored_from_a_backup(fleet, programs):
    fleet.serve()
    fleet.join()
    fleet.until_version(2)
    done = fleet.run("backup", "--state", "coordinator", "--out", "monday", "--json")
    assert done.returncode == 0, done.stderr
    version = json.loads(done.stdout)["version"]
    fleet.until_version(version + 3)
    fleet.end(signal.SIGKILL, ["coordinator"])
    restore(programs, "monday")
    fleet.forget_logs()
    fleet.serve()
    programs.until_logged("coordinator", "devices will follow it back")
    for name in NAMES:
        programs.until_logged(name, "the coordinator went back to version ")
    fleet.until_version(version + 4)
    fleet.until_both_count_after(version + 1)
    assert fleet.status()["version"] >= version + 4
    assert [(one["device"], one["online"], one["astray"]) for one in fleet.status()["devices"]] == [
        (name, True, None) for name in NAMES
    ]
    reasons = {one["reason"] for one in json.loads(programs.report("history", "--json"))["rejections"]}
    # What the backup has counted counts once, though its device has begun its attempts anew.
    assert reasons <= {"unknown-version", "attempt-taken"}
    fleet.end()


def test_a_restored_fleet_goes_on_at_another_broker_too(fleet, programs, elsewhere):
    """Nothing is retained there that could tell the coordinator of the sessions it has forgotten."""
    fleet.serve()
    fleet.join()
    fleet.until_version(1)
    done = fleet.run("backup", "--state", "coordinator", "--out", "monday", "--json")
    version = json.loads(done.stdout)["version"]
    fleet.until_version(version + 3)
    fleet.end(signal.SIGKILL)
    restore(programs, "monday")
    fleet.forget_logs()
    programs.common[1] = elsewhere
    fleet.serve()
    fleet.join()
    fleet.until_both_count_after(version + 1)
    for name in NAMES:
        programs.until_logged(name, "the coordinator went back to version ")
    fleet.end()


def test_a_fleet_moves_to_another_broker(fleet, programs, elsewhere):
    fleet.serve()
    fleet.join()
    fleet.until_version(2)
    fleet.end()
    version = fleet.status()["version"]
    fleet.forget_logs()
    programs.common[1] = elsewhere
    fleet.serve()
    fleet.join()
    fleet.until_both_count_after(version + 1)
    for name in NAMES:
        assert "went back" not in programs.log(name)
        assert "dropped" not in programs.log(name)
    assert json.loads(programs.report("history", "--json"))["rejections"] == []
    fleet.end()


def test_a_coordinator_moves_to_another_machine(fleet, programs):
    fleet.serve()
    fleet.join()
    fleet.until_version(2)
    fleet.end(names=["coordinator"])
    version = fleet.status()["version"]
    subprocess.run(["cp", "-a", "coordinator", "moved"], cwd=programs.folder, check=True)
    fleet.forget_logs()
    fleet.serve("moved")
    fleet.until_version(version + 2)
    late = fleet.run("serve", *programs.common, "--state", "coordinator", "--rank", "4")
    assert late.returncode == 1
    assert "from a copy of this state folder" in late.stderr
    fleet.until_version(version + 3)
    for name in NAMES:
        assert "went back" not in programs.log(name)
    fleet.end()


def test_a_backup_is_not_written_over_anything(fleet, programs):
    fleet.serve()
    programs.until_logged("coordinator", "coordinator key")
    (programs.folder / "monday").mkdir()
    (programs.folder / "monday" / "notes").write_text("mine")
    done = fleet.run("backup", "--state", "coordinator", "--out", "monday")
    assert (done.returncode, done.stderr) == (
        1,
        "tunefleet: monday: is not empty; give a folder that is new\n",
    )
    done = fleet.run("backup", "--state", "nowhere", "--out", "tuesday")
    assert done.returncode == 1
    assert done.stderr.startswith("tunefleet: nowhere: holds no journal.sqlite")
    assert not (programs.folder / "tuesday").exists()
