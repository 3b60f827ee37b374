"""A device without torch: the wheel in an empty environment, from a GGUF file to the receipt of a task."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "peft", "tokenizers", "mlx", "mlx_lm", "amqtt", "matplotlib")
OUT_OF_REACH = ("No matching distribution", "Connection", "Temporary failure in name resolution")
SERVE = "--fleet home --base {folder} --state coordinator --buffer-size 1 --max-versions 1 --steps 4 --rank 4"
JOIN = "--fleet home --base {path} --data data.jsonl --device-id phone --state phone --max-tasks 1 --json"


@pytest.fixture
def phone(wheel, tmp_path):
    """The commands of an environment with the wheel and its extra `llama`, and nothing of this checkout."""
    venv.create(tmp_path / "phone", symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", tmp_path / "phone/bin/python", "install", "--no-compile"]
    # llama-cpp-python comes from pip's cache, where `make` has left it; else it is compiled for minutes.
    done = subprocess.run(
        [*pip, "-c", ROOT / "constraints.txt", f"{wheel}[llama]"],
        env=os.environ | {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and any(word in done.stderr for word in OUT_OF_REACH):
        pytest.skip(f"the package registry is out of reach: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return tmp_path / "phone/bin"


@pytest.mark.broker
@pytest.mark.llama
@pytest.mark.timeout(1200)
def test_a_device_without_torch_runs_a_task_to_its_receipt(phone, make_model, make_gguf, mosquitto, tmp_path):
    rows = [{"prompt": f"turn {word} ", "completion": word.upper()} for word in ("on", "off", "up", "down")]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    broker = ["--broker", f"mqtt://127.0.0.1:{mosquitto}"]
    join = [phone / "tunefleet", "join", *broker, *JOIN.format(path=make_gguf("llama", "q8_0")).split()]
    ours = [sys.executable, "-m", "tunefleet"]
    serve = [*ours, "serve", *broker, *SERVE.format(folder=make_model("llama")).split()]
    with subprocess.Popen(serve, cwd=tmp_path) as coordinator:
        try:
            device = subprocess.run(
                join, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
            )
            assert (device.returncode, device.stderr) == (0, "")
            assert coordinator.wait(timeout=60) == 0
        finally:
            coordinator.kill()
    events = [json.loads(line)["event"] for line in device.stdout.splitlines()]
    assert {"proved", "training", "spooled", "accepted"} <= set(events)
    assert "warning" not in events
    history = [*ours, "history", "--state", tmp_path / "coordinator", "--json"]
    made = json.loads(subprocess.run(history, check=True, capture_output=True).stdout)["versions"]
    assert [version["version"] for version in made] == [0, 1]
    assert missing(phone, HEAVY) == list(HEAVY)
    assert missing(phone, ("llama_cpp", "gguf", "tunefleet")) == []


def test_the_command_of_the_page_is_one_that_join_takes(tmp_path):
    for name in ("model.gguf", "data.jsonl"):
        (tmp_path / name).touch()
    page = (ROOT / "docs/phone.md").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"tunefleet (join --broker .*)", page)
    command = [sys.executable, "-m", "tunefleet", *shlex.split(line), "--print-config"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert tomllib.loads(done.stdout)["base"] == "model.gguf"


def missing(phone, names):
    """Those modules that the environment lacks."""
    code = f"from importlib.util import find_spec; print(*(name for name in {names} if not find_spec(name)))"
    command = [phone / "python", "-I", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
