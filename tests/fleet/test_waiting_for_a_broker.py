"""`--wait` with no broker there: both ends say what they wait for, and a signal ends them in order."""

import json
import signal
import subprocess
import sys

import pytest

from edge.backends.toy import make_toy_base

NOWHERE = "mqtt://127.0.0.1:9"  # nothing listens there


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["serve", "join"])
def test_who_waits_for_a_broker_says_so_and_ends_by_a_signal(command, number, tmp_path):
    base = make_toy_base(tmp_path / "base", seed=0)
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": "turn on the lamp"}))
    options = [
        "--broker",
        NOWHERE,
        "--fleet",
        "home",
        "--base",
        base,
        "--state",
        tmp_path / "state",
        "--wait",
    ]
    if command == "join":
        options += ["--data", tmp_path / "data.jsonl", "--device-id", "lamp"]
    line = [sys.executable, "-m", "tunefleet", command, *map(str, options)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        told = next(text for text in process.stdout if "trying again until it answers" in text)
        assert "127.0.0.1:9 cannot be reached" in told
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
        assert "stopped" in process.stdout.read()
