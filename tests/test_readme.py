"""The README's commands, run as they stand there, on a toy base and over Mosquitto."""

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge.backends.toy import make_toy_base

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.broker


def test_the_commands_of_the_readme_make_a_fleet(tmp_path: Path, mosquitto: int) -> None:
    commands = readme_commands(tmp_path, mosquitto)
    assert {"serve", "join", "history", "export", "train"} <= commands.keys()
    serve = [*commands["serve"], "--max-versions", "3"]
    with running(tmp_path, serve) as coordinator, running(tmp_path, commands["join"]) as device:
        assert coordinator.wait(timeout=120) == 0
        device.send_signal(signal.SIGTERM)
        assert device.wait(timeout=60) == 0
    history = json.loads(run(tmp_path, [*commands["history"], "--json"]))
    assert [version["version"] for version in history["versions"]] == [0, 1, 2, 3]
    run(tmp_path, commands["export"])
    assert (tmp_path / "adapter/adapter_config.json").exists()
    run(tmp_path, [*commands["train"], "--steps", "2"])
    assert (tmp_path / "alone/adapter_config.json").exists()


def readme_commands(folder: Path, port: int) -> dict[str, list[str]]:
    """Arguments of every `tunefleet …` in the README, by subcommand, with the capitals filled in."""
    make_toy_base(folder / "base", seed=0)
    rows = [{"prompt": f"{word}: ", "completion": word[::-1]} for word in ("lamp", "pump", "gate", "horn")]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"HOST": f"127.0.0.1:{port}", "PATH": "base", "FILE": "data.jsonl", "DIR": "alone"}
    text = re.sub(
        r"\b(HOST|PATH|FILE|DIR)\b", lambda match: values[match[1]], (ROOT / "README.md").read_text()
    )
    commands = [shlex.split(line)[1:] for line in re.findall(r"tunefleet [a-z]+ +--[^`\n]*", text)]
    return {command[0]: command for command in commands}


@contextmanager
def running(folder: Path, arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The command in the background; killed where it has not ended by itself."""
    process = subprocess.Popen([sys.executable, "-m", "tunefleet", *arguments], cwd=folder)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run(folder: Path, arguments: list[str]) -> str:
    """Output of the command, which must succeed."""
    command = [sys.executable, "-m", "tunefleet", *arguments]
    return subprocess.run(command, check=True, cwd=folder, stdout=subprocess.PIPE, text=True).stdout
