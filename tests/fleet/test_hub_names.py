"""A fleet whose base model is given by its name on the hub, from the cache of a machine without a network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[2] / "coordinator/demo/model"
NAME, COMMIT = "someone/household", "0123456789abcdef0123456789abcdef01234567"
pytestmark = [pytest.mark.broker, pytest.mark.torch]
pytest.importorskip("huggingface_hub", reason="needs the torch or mlx extra")


@pytest.fixture
def offline(tmp_path):
    """The environment of a machine that has the shipped model in its cache of the hub, and no network."""
    repository = tmp_path / "hub" / "hub" / f"models--{NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(MODEL, repository / "snapshots" / COMMIT)
    return {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def named(make_programs, mosquitto, offline):
    programs = make_programs(f"mqtt://127.0.0.1:{mosquitto}", offline)
    programs.common[programs.common.index("--base") + 1] = NAME
    return programs


def test_serve_and_join_take_a_hub_name(named):
    coordinator = named.serve("--max-versions", "1", "--steps", "1", "--buffer-size", "1")
    device = named.join("lamp", "--max-tasks", "1", "--backend", "torch", "--precision", "float32")
    assert coordinator.wait(120) == 0, named.log("coordinator")
    assert device.wait(60) == 0, named.log("lamp")
    assert "loaded: torch in float32" in named.log("lamp")
    assert "backend: torch: as asked" in named.log("lamp")


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("someone/else", "someone/else: no such folder, and not to be had from the hub"),
        ("./someone/household", "base is './someone/household', which does not exist"),
        ("household", "base is 'household', which does not exist"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "join"])
def test_what_is_neither_here_nor_on_the_hub_is_one_line(offline, tmp_path, command, base, told):
    (tmp_path / "lamp.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    own = ["--data", "lamp.jsonl", "--device-id", "lamp"] if command == "join" else []
    done = subprocess.run(
        [sys.executable, "-m", "tunefleet", command, "--broker", "mqtt://127.0.0.1:1", "--fleet", "home",
         "--base", base, "--state", "state", *own],
        cwd=tmp_path, env=os.environ | offline, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
