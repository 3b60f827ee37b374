"""An honest fleet at real brokers, as processes, with certificates and everybody held to their own topics."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.broker, pytest.mark.torch, pytest.mark.timeout(240)]

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


def test_a_device_with_a_certificate_and_a_token_trains_and_a_ban_ends_it(site):
    programs = Programs(site)
    place = site.port_of("home_coordinator"), site.folder_of("home_coordinator")
    programs.start(
        "coordinator", "serve", *place, "--base", BASE, "--state", "coordinator", "--enrolment", "closed",
        "--steps", "1",
    )  # fmt: skip
    programs.until_logged("coordinator", "coordinator key")
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
    assert "refused" not in programs.log("lamp") + programs.log("coordinator")
    (listed,) = json.loads(programs.run("device", "list", "--state", "coordinator", "--json"))
    assert (listed["device"], listed["admitted_by"]) == ("lamp", "token")
    programs.run("device", "ban", "lamp", "--state", "coordinator")
    assert lamp.wait(timeout=60) == 1
    assert "lamp was banned from fleet home by its owner" in programs.log("lamp").splitlines()[-1]
