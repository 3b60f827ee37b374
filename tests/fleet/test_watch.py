"""A fleet is watched over a real broker: by `tunefleet watch`, and by mosquitto_sub as the docs say it."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.backends.toy import make_toy_base

ROOT = Path(__file__).parents[2]
BROKER = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/opt/homebrew/sbin")
HOSTILE = json.dumps(
    {"update": "0" * 32, "header": "0" * 64, "status": "rejected", "detail": "\x1b[2J[red]x[/red]\u202e"}
)

pytestmark = pytest.mark.broker


@pytest.fixture
def watched(tmp_path):
    """`run(words, name)` starts a watcher beside a fleet of one device, all of which are ended at last."""
    if not (BROKER and shutil.which("mosquitto_sub")):
        pytest.skip("the mosquitto programs are not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = Place(tmp_path, port)
    try:
        place.start([BROKER, "-v", "-p", str(port)], "broker")
        place.until("broker", "Opening ipv4 listen socket")
        yield place
    finally:
        for process in place.processes:
            process.kill()
            process.wait()


class Place:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.processes = folder, port, []
        make_toy_base(folder / "base", dim=128)
        rows = [{"prompt": f"light {n}: ", "completion": f"on({n})"} for n in range(20)]
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(self, words, name, **settings) -> subprocess.Popen:
        with (self.folder / f"{name}.out").open("wb") as out, (self.folder / f"{name}.err").open("wb") as err:
            process = subprocess.Popen(words, cwd=self.folder, stdout=out, stderr=err, **settings)
        self.processes.append(process)
        return process

    def tunefleet(self, name, *words) -> subprocess.Popen:
        address = ["--broker", f"mqtt://127.0.0.1:{self.port}"]
        return self.start([sys.executable, "-m", "tunefleet", *words, *address], name)

    def read(self, name) -> str:
        return (self.folder / f"{name}.out").read_text() + (self.folder / f"{name}.err").read_text()

    def until(self, name, text) -> None:
        deadline = time.monotonic() + 60
        while text not in self.read(name):
            assert time.monotonic() < deadline, self.read(name)
            time.sleep(0.05)

    def run_fleet(self) -> None:
        """To its second version, in chunks of 1 KiB."""
        own = ["--fleet", "home", "--base", "base"]
        (self.folder / "fleet.toml").write_text("chunk_bytes = 1024\nmax_versions = 2\n[recipe]\nsteps = 3\n")
        serve = self.tunefleet("serve", "serve", *own, "--state", "coordinator", "--config", "fleet.toml")
        join = ["join", *own, "--data", "data.jsonl", "--device-id", "lamp", "--state", "lamp"]
        device = self.tunefleet("lamp", *join)
        assert serve.wait(timeout=120) == 0, self.read("serve")
        device.send_signal(signal.SIGTERM)
        device.wait(timeout=60)


def test_watch_tells_a_fleets_story_and_takes_no_part_in_it(watched):
    human = watched.tunefleet("human", "watch", "--fleet", "home")
    machine = watched.tunefleet("machine", "watch", "--json")
    for name in ("human", "machine"):
        watched.until(name, "watching")
    watched.until("broker", "Sending SUBACK to watch-")
    watched.run_fleet()
    publish = ["mosquitto_pub", "-p", str(watched.port), "-t", "tunefleet/v2/home/device/lamp/receipt", "-m"]
    subprocess.run([*publish, HOSTILE], check=True)
    for name in ("human", "machine"):
        watched.until(name, "00000000 of lamp")
    for process in (human, machine):
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=10)
        assert time.monotonic() - began < 5
    told = (watched.folder / "human.out").read_text()
    assert all(line.isprintable() for line in told.splitlines())
    for line in (
        r" \*coordinator is online",
        r" lamp         says hello: toy, rank 64 at most, ",
        r" \*coordinator offers version 0: rank 8, 16.9 KB; 3 steps at 0.001",
        r" lamp         asks for version 0: chunks 0-16 of 17",
        r" \*coordinator sent all of version 0: 17 chunks, 19.5 KB",
        r" lamp         update [0-9a-f]{8} on version 0: 8.9 KB, sealed, f16",
        r" \*coordinator accepted update [0-9a-f]{8} of lamp",
        r" \*coordinator offers version 2, from 1: ",
        r" lamp         is offline",
        r" \*coordinator \[unsigned\] rejected update 00000000 of lamp: \\x1b\[2J\[red\]x\[/red\]\\u202e",
    ):
        assert re.search(line, told), (line, told)
    seen = [json.loads(line) for line in (watched.folder / "machine.out").read_text().splitlines()]
    kinds = {"hello", "state", "coordinator", "version", "want", "header", "receipt", "chunks"}
    assert kinds <= {one["kind"] for one in seen}
    assert {one["signature"] for one in seen if one["kind"] in ("hello", "version", "header")} == {"valid"}
    log = watched.read("broker")
    assert re.search(r"Received PUBLISH from home-\S*lamp", log)
    assert "Received PUBLISH from watch-" not in log
    assert re.search(r"as (watch-[0-9a-f]{16}) \(p5, c1, ", log), "a session that ends with its connection"


def test_a_watcher_of_a_broker_without_a_fleet_says_that_nothing_comes(watched):
    watcher = watched.tunefleet("watch", "watch", "--fleet", "hmoe")
    watched.until("watch", "nothing is said of fleet hmoe on this broker so far; is it the right one?")
    watcher.send_signal(signal.SIGINT)
    watcher.wait(timeout=10)
    assert "Traceback" not in watched.read("watch")


def test_mosquitto_sub_as_the_docs_say_it_shows_text_alone(watched):
    commands = documented_commands(watched.port)
    assert len(commands) == 2
    for number, command in enumerate(commands):
        watched.start(command, f"sub-{number}")
    for _ in range(100):
        if watched.read("broker").count("Sending SUBACK") == 2:
            break
        time.sleep(0.05)
    watched.run_fleet()
    for number in range(2):
        watched.until(f"sub-{number}", '"online":false')
        said = (watched.folder / f"sub-{number}.out").read_bytes().decode("ascii")
        assert all(line.isprintable() for line in said.splitlines())
        topics = {line.split(" ")[0].removeprefix("tunefleet/v2/home/") for line in said.splitlines()}
        kinds = {re.sub(r"/[0-9a-f]{32}/", "/*/", topic) for topic in topics}
        plain = {"coordinator", "version/r8", *(f"device/lamp/{one}" for one in ("hello", "state", "want"))}
        assert plain | {"device/lamp/receipt"} <= kinds
        assert ("device/lamp/up/*/header" in kinds) == (number == 0)
        assert not any(re.search(r"/blob/|/up/[^/]*/[0-9]", topic) for topic in topics)


def documented_commands(port: int) -> list[list[str]]:
    """The commands of docs/architecture.md, for a broker on this machine."""
    text = (ROOT / "docs/architecture.md").read_text().replace("\\\n", " ")
    found = re.findall(r"^(mosquitto_sub -.*)$", text, re.M)
    return [
        [word if word != "HOST" else "127.0.0.1" for word in shlex.split(line)] + ["-p", str(port)]
        for line in found
    ]
