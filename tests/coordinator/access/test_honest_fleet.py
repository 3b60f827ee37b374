"""An honest fleet at real brokers, as processes, with certificates and everybody held to their own topics."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from edge.protocol.rights import ROOT

pytestmark = [
    pytest.mark.broker,
    pytest.mark.torch,
    pytest.mark.timeout(240),
]

UPDATE, SHA = "0" * 32, "0" * 64
OWN = ("hello", "state", "want", "telemetry", "enrol", f"up/{UPDATE}/header", f"up/{UPDATE}/0")
FOREIGN = (
    "coordinator", "coordinator/answer", "coordinator/challenge", "version/r8", f"blob/{SHA}/0",
    "device/lamp/receipt", "device/lamp/access", "device/lamp/state", f"device/lamp/up/{UPDATE}/0",
    f"device/pi4/up/{'9' * 5000}/0", f"device/{'x' * 60_000}/hello",
)  # fmt: skip
ENVELOPE = {"body": {}, "key": "a" * 64, "signature": "b" * 128, "epoch": 2**53, "count": 2**53}
HOSTILE = (
    b"", b"\xff" * 528, b"{}", b'{"body":' + b"[" * 5000 + b"]" * 5000 + b"}", b"[" * 60_000,
    b"\x1b[2J[/red]", json.dumps(ENVELOPE).encode(),
    json.dumps(ENVELOPE | {"body": {"online": False}}).encode(), b"1" * 1_900_000,
)  # fmt: skip
BASE = Path(__file__).parents[3] / "coordinator/demo/model"


class Programs:
    """`tunefleet …` in the folder of a site."""

    def __init__(self, site):
        self.site = site
        self.common = ["--fleet", "home"]

    def run(self, *arguments, text=None):
        done = subprocess.run(
            [sys.executable, "-m", "tunefleet", *arguments],
            cwd=self.site.folder, capture_output=True, text=True, input=text,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, name, command, port, certs, *arguments):
        tls = ["--broker", f"mqtts://127.0.0.1:{port}", "--tls-ca", certs / "ca.crt"]
        tls += ["--tls-cert", certs / "tls.crt", "--tls-key", certs / "tls.key"]
        with (self.site.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tunefleet", command, *self.common, *tls, *arguments],
                cwd=self.site.folder, stdout=log, stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self.site.at_end(process.wait)
        self.site.at_end(process.kill)
        return process

    def log(self, name):
        path = self.site.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def until_logged(self, name, text):
        deadline = time.monotonic() + 120
        while text not in self.log(name):
            assert time.monotonic() < deadline, self.log(name) + self.log("broker")
            time.sleep(0.1)


class Insider(threading.Thread):
    """Whoever holds pi4's certificate, and no key that the fleet knows: sends what it likes, for ever."""

    def __init__(self, site):
        super().__init__(daemon=True)
        self.site, self.num_sent, self._is_over = site, 0, threading.Event()

    def run(self):
        topics = [f"device/pi4/{kind}" for kind in OWN] + list(FOREIGN)
        while not self._is_over.is_set():
            member = self.site.passer_by("pi4", self.site.folder_of("pi4"))
            if not member.connect():  # NATS lets who was thrown out wait
                time.sleep(0.2)
                continue
            for topic in topics:
                for payload in HOSTILE:
                    if not member.is_here or self._is_over.wait(0.002):
                        break
                    self._send(member, topic, payload)
            member.leave()

    def _send(self, member, topic, payload):
        try:
            member.client.publish(f"{ROOT}/home/{topic}", payload, qos=1, retain=True)
            self.num_sent += 1
        except ValueError:  # longer than MQTT's topics can be
            return

    def end(self):
        self._is_over.set()
        self.join(10)


def test_beside_an_insider_a_device_with_certificate_and_token_trains_until_a_ban_ends_it(site):
    programs = Programs(site)
    place = site.port_of("home_coordinator"), site.folder_of("home_coordinator")
    programs.start(
        "coordinator", "serve", *place, "--base", BASE, "--state", "coordinator", "--enrolment", "closed",
        "--steps", "1",
    )  # fmt: skip
    programs.until_logged("coordinator", "coordinator key")
    insider = Insider(site)
    insider.start()
    site.at_end(insider.end)
    token = programs.run("device", "token", "--state", "coordinator", "--for", "lamp")
    programs.run("enroll", "--state", "lamp", "--token-file", "-", text=token)
    rows = [{"prompt": f"lamp {number}: ", "completion": f"set({number})"} for number in range(20)]
    (site.folder / "lamp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    programs.start("watch", "watch", *place)
    own = ["--base", BASE, "--data", "lamp.jsonl", "--device-id", "lamp", "--state", "lamp"]
    lamp = programs.start("lamp", "join", site.port, site.folder_of("lamp"), *own)
    programs.until_logged("coordinator", "version 2: ")
    programs.until_logged("watch", "lamp")
    assert "is let in by its token" in programs.log("lamp")
    assert insider.num_sent > 100
    assert "Traceback" not in programs.log("lamp") + programs.log("coordinator") + programs.log("watch")
    with closing(sqlite3.connect(site.folder / "coordinator/journal.sqlite")) as journal:
        assert journal.execute("SELECT DISTINCT device FROM updates").fetchall() == [("lamp",)]
        assert journal.execute("SELECT count(*) FROM refusals").fetchone() == (0,)
    (listed,) = json.loads(programs.run("device", "list", "--state", "coordinator", "--json"))
    assert (listed["device"], listed["admitted_by"]) == ("lamp", "token")
    programs.run("device", "ban", "lamp", "--state", "coordinator")
    assert lamp.wait(timeout=60) == 1
    assert "lamp was banned from fleet home by its owner" in programs.log("lamp").splitlines()[-1]
