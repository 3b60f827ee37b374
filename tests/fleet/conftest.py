"""The command as its user starts it: processes in a folder of their own, against one broker."""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

BASE = Path(__file__).parents[2] / "coordinator/demo/model"
LIMIT_S = 120.0


class Programs:
    """`tunefleet …` in a folder of its own, against one broker."""

    def __init__(self, folder, broker, stack, environment=None):
        self.folder = folder
        self.common = ["--broker", broker] if broker else []
        self.common += ["--fleet", "home", "--base", str(BASE)]
        self.environment = os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {})
        self._stack = stack

    def start(self, name, *arguments):
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tunefleet", *arguments],
                cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, env=self.environment,
            )  # fmt: skip
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def serve(self, *flags):
        return self.start("coordinator", "serve", *self.common, "--state", "coordinator", *flags)

    def join(self, name, *flags):
        rows = [{"prompt": f"{name} {number}: ", "completion": f"set({number})"} for number in range(20)]
        (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        own = ["--data", f"{name}.jsonl", "--device-id", name, "--state", name]
        return self.start(name, "join", *self.common, *own, *flags)

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def until_logged(self, name, text):
        deadline = time.monotonic() + LIMIT_S
        while text not in self.log(name):
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.1)

    def report(self, command, *flags):
        done = subprocess.run(
            [sys.executable, "-m", "tunefleet", command, "--state", "coordinator", *flags],
            cwd=self.folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout


@pytest.fixture
def make_programs(tmp_path):
    """`make_programs(broker=None, environment=None)`; what still runs at the end is killed."""
    with ExitStack() as stack:
        yield lambda broker=None, environment=None: Programs(tmp_path, broker, stack, environment)


@pytest.fixture
def programs(make_programs, mosquitto):
    return make_programs(f"mqtt://127.0.0.1:{mosquitto}")
