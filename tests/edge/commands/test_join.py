import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]


def join(*flags):
    command = [sys.executable, "-m", "tunefleet", "join", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_printed_settings_are_what_config_reads(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n')
    flags = {
        "--broker": "mqtt://127.0.0.1",
        "--fleet": "home",
        "--base": str(tmp_path),
        "--data": str(tmp_path / "data.jsonl"),
        "--prompt-column": "question",
        "--device-id": "lamp",
        "--state": str(tmp_path / "state"),
        "--rank": "4",
    }
    done = join(*[part for pair in flags.items() for part in pair], "--wait", "--print-config")
    settings = tomllib.loads(done.stdout)
    assert (settings["max_rank"], settings["waits_for_broker"]) == (4, True)
    assert settings["data"]["prompt_column"] == "question"
    (tmp_path / "config.toml").write_text(done.stdout)
    assert join("--config", str(tmp_path / "config.toml"), "--print-config").stdout == done.stdout


def test_wrong_settings_are_one_line_and_status_1():
    done = join("--fleet", "My Home", "--backend", "jax")
    assert done.returncode == 1
    assert done.stderr.startswith("tunefleet: settings: ")
    assert done.stderr.count("\n") == 1
    for fault in ("fleet is 'My Home'", "backend is 'jax'", "broker is missing", "data is missing"):
        assert fault in done.stderr
