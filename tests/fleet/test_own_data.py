"""One's own data on the way into a fleet: what is wrong with it is told before anything else is begun."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edge.backends.toy import make_toy_base

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "NO_COLOR": "1"}
GOOD = [{"prompt": f"turn {word} ", "completion": word.upper()} for word in ("on", "off", "up", "down")]
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


@pytest.fixture
def office(tmp_path):
    """A folder with a base model; the base lacks its weights, so that whoever loads them fails."""
    make_toy_base(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"")
    return tmp_path


@pytest.fixture
def nobody():
    """The URL of a broker that is not there, and a check that nobody asked for it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        yield f"mqtt://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(BlockingIOError):
            listener.accept()


def tunefleet(folder, *words):
    command = [sys.executable, "-m", "tunefleet", *map(str, words)]
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )


def join(folder, broker, data, *words):
    fleet = ("--broker", broker, "--fleet", "home", "--device-id", "lamp", "--state", "state")
    return tunefleet(folder, "join", *fleet, "--base", "base", "--data", data, *words)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_join_tells_all_that_is_wrong_with_the_data_before_it_asks_the_broker(office, nobody):
    rows = GOOD * 5
    rows[3::4] = [{"prompt": "a"}] * 5
    rows[0] = {"prompt": "a", "completion": ""}
    (office / "data.jsonl").write_text(lines(rows) + "{\n")
    done = join(office, nobody, "data.jsonl")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "tunefleet: data.jsonl: 7 of 21 rows cannot be used: "
        '5 lack "completion" (lines 4, 8, 12, …); 1 has an empty completion (line 1); '
        "1 is not JSON (line 21)\n"
    )
    assert not (office / "state").exists()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("faq.csv", "question,answer\na,b\n", "--prompt-column and --completion-column"),
        ("data.jsonl", '{"text": "ä"}'.encode("utf-16"), "is UTF-16 text, expected UTF-8"),
        ("data.jsonl", '{"a": ' + "[" * 20_000 + "]" * 20_000 + "}", "nested too deeply"),
        ("data.jsonl", "", "holds no examples"),
        (
            "folder/notes.csv",
            "text\na\n",
            "is a folder without train.jsonl, and no dataset saved to disk; it ",
        ),
    ],
)
def test_a_file_of_no_use_is_one_line_before_the_broker_is_asked(office, nobody, name, content, reason):
    (office / "folder").mkdir()
    (office / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    done = join(office, nobody, name.partition("/")[0])
    assert done.returncode == 1
    assert done.stderr.startswith(f"tunefleet: {name.partition('/')[0]}: ")
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr


@pytest.mark.torch
def test_a_base_without_a_chat_template_refuses_conversations_before_the_broker_is_asked(
    tmp_path, make_model, nobody
):
    (tmp_path / "base").symlink_to(make_model("llama"))
    (tmp_path / "data.jsonl").write_text(lines([CHAT, CHAT]))
    done = join(tmp_path, nobody, "data.jsonl")
    assert done.returncode == 1
    assert "2 cannot be rendered: the base model has no chat template; use prompt and com" in done.stderr


def test_join_says_what_it_will_train_on_and_only_then_looks_for_the_broker(office):
    make_toy_base(office / "base")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (office / "mine").mkdir()
    (office / "mine" / "train.jsonl").write_text(lines(GOOD))
    done = join(office, f"mqtt://127.0.0.1:{port}", "mine", "--json")
    event = json.loads(done.stdout.splitlines()[0])
    assert event["event"] == "checked"
    assert event["text"] == "4 rows of prompt and completion in mine/train.jsonl"
    assert (event["num_rows"], event["path"]) == (4, "mine/train.jsonl")
    assert f"broker 127.0.0.1:{port} cannot be reached" in done.stderr


@pytest.mark.parametrize("command", ["train", "eval"])
def test_train_and_eval_check_data_before_they_load_a_model(office, command):
    (office / "data.csv").write_text("prompt,completion\na,\n")
    out = ("--out", "adapter") if command == "train" else ()
    done = tunefleet(office, command, "--base", "base", "--data", "data.csv", *out)
    if command == "train":  # its headers are read first
        assert "model.safetensors" in done.stderr
        make_toy_base(office / "base")
        done = tunefleet(office, command, "--base", "base", "--data", "data.csv", *out)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "tunefleet: data.csv: 1 of 1 rows cannot be used: 1 has an empty completion (line 2)"
    assert "loading" not in done.stderr


def test_data_check_shows_what_training_would_make_of_a_file(office):
    rows = [*GOOD, GOOD[0], {"prompt": "a" * 40 + " ", "completion": "b" * 30}]
    (office / "data.jsonl").write_text(lines(rows))
    done = tunefleet(office, "data", "check", "data.jsonl", "--base", "base", "--seq-tokens", "32")
    assert done.returncode == 0
    for words in (
        "data.jsonl: 6 rows",
        "prompt and completion",
        "139, 49 of them trained on (35 %)",
        "12 to 73, median 14, 90 % up to 73 tokens",
        "1 row cut: 40 tokens lost, 0 of them to be trained on",
        "1 row\n",
        "<bos>|t|u|r|n| |o|n| |[O][N][<eos>]",
    ):
        assert words in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stderr == "reading data.jsonl\n"


def test_data_check_lists_every_fault_and_ends_with_status_1(office):
    rows = [GOOD[0], {"prompt": "a"}, {"text": 3}, {"prompt": "\x1b[31m", "completion": "\x1b]0;x\x07"}]
    (office / "data.jsonl").write_text(lines(rows))
    done = tunefleet(office, "data", "check", "data.jsonl", "--base", "base")
    assert done.returncode == 1
    assert '1 lacks "completion" (line 2)' in done.stdout
    assert "1 has a text that is a number, expected a string (line 3)" in done.stdout
    assert "\x1b" not in done.stdout  # a file does not steer the terminal
    report = json.loads(tunefleet(office, "data", "check", "data.jsonl", "--base", "base", "--json").stdout)
    assert report["num_unusable"] == 2
    assert report["faults"][0] == {"reason": 'lack "completion"', "count": 1, "first": [2]}
    assert len(report["examples"]) == 2


def test_a_folder_is_trained_on_by_its_first_part_and_scored_on_its_second(office):
    make_toy_base(office / "base")
    (office / "mine").mkdir()
    (office / "mine" / "train.jsonl").write_text(lines(GOOD))
    (office / "mine" / "valid.jsonl").write_text(lines(GOOD[:2]))
    train = ("train", "--base", "base", "--out", "adapter", "--data", "mine", "--valid", "mine")
    done = tunefleet(office, *train, "--steps", "2", "--json")
    assert json.loads(done.stdout)["valid_after"]["num_examples"] == 2
    assert "reads 4 rows of prompt and completion in mine/train.jsonl" in done.stderr
    done = tunefleet(office, "eval", "--base", "base", "--data", "mine", "--json")
    assert json.loads(done.stdout)["num_examples"] == 2
    assert "scoring mine/valid.jsonl" in done.stderr


def test_serve_checks_its_calibration_before_the_broker_is_asked(office, nobody):
    make_toy_base(office / "base")
    (office / "held-out.csv").write_text("prompt,completion\na,b\nc,\n")
    fleet = ("--broker", nobody, "--fleet", "home", "--base", "base", "--state", "state")
    done = tunefleet(office, "serve", *fleet, "--calibration", "held-out.csv")
    assert done.returncode == 1
    assert "held-out.csv: 1 of 2 rows cannot be used: 1 has an empty completion (line 3)" in done.stderr
