"""A person asks what was trained, with the command as it is installed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from edge.backends.toy import make_toy_base

WORDS = ("on", "left")
PLAN = (
    "--steps",
    "700",
    "--lr",
    "0.02",
    "--schedule",
    "linear",
    "--seq-tokens",
    "64",
    "--batch-tokens",
    "128",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a toy base and two adapters: one trained on chats, one on prompts as they stand."""
    folder = tmp_path_factory.mktemp("asking")
    make_toy_base(folder / "base", max_tokens=96)
    chats = [[("system", "Shout."), ("user", f"turn {word}"), ("assistant", word.upper())] for word in WORDS]
    rows = {
        "chat": [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in chats],
        "plain": [{"prompt": f"turn {word} ", "completion": word.upper()} for word in WORDS],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        arguments = ("--base", "base", "--data", f"{name}.jsonl", "--out", name, *PLAN)
        run(folder, "train", *arguments, check=True)
    return folder


def run(folder, *arguments, check=False, text=""):
    command = [sys.executable, "-m", "tunefleet", *arguments]
    return subprocess.run(command, cwd=folder, input=text, capture_output=True, text=True, check=check)


def ask(folder, *arguments, text=""):
    return run(folder, "generate", "--base", "base", "--max-tokens", "12", *arguments, text=text)


def test_an_adapter_trained_on_chats_is_asked_in_a_chat(trained):
    done = ask(trained, "--adapter", "chat", "--system", "Shout.", "turn left")
    assert done.stdout == "LEFT\n"
    raw = ask(trained, "--adapter", "chat", "--raw", "<system>Shout.\n<user>turn left\n<assistant>")
    assert raw.stdout == done.stdout


def test_an_adapter_trained_on_prompts_is_asked_with_the_prompt_as_it_stands(trained):
    done = ask(trained, "--adapter", "plain", "turn left ")
    assert done.stdout == "LEFT\n"
    assert "note: asked as the adapter was trained, with the prompt as it stands; --chat" in done.stderr
    assert ask(trained, "--adapter", "plain", "--raw", "turn left ").stdout == done.stdout
    assert ask(trained, "--adapter", "plain", "--chat", "turn left ").stdout != done.stdout


def test_an_adapter_trained_on_alpacas_rows_is_asked_in_alpacas_prompt(trained):
    row = {"instruction": "turn left", "output": "LEFT"}
    (trained / "alpaca.jsonl").write_text(json.dumps(row))
    make_toy_base(trained / "wide", max_tokens=400)
    data = ("--base", "wide", "--data", "alpaca.jsonl", "--out", "alpaca", "--steps", "1")
    run(trained, "train", *data, check=True)
    done = run(trained, "generate", "--base", "wide", "--adapter", "alpaca", "--json", "turn left")
    assert json.loads(done.stdout)["num_prompt_tokens"] > 100
    assert "with Alpaca's prompt around the instruction; --raw" in done.stderr


def test_the_base_alone_is_asked_in_a_chat_where_it_has_a_template(trained):
    found = [
        json.loads(ask(trained, "--json", *flags, "hi").stdout)["num_prompt_tokens"]
        for flags in ((), ("--raw",), ("--system", "so"))
    ]
    assert found == [len("^<user>hi\n<assistant>"), 3, len("^<system>so\n<user>hi\n<assistant>")]


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_the_prompt_comes_from_standard_input_where_there_is_none(trained, arguments):
    assert ask(trained, "--adapter", "plain", *arguments, text="turn left \n").stdout == "LEFT\n"


def test_json_is_an_object_a_prompt(trained):
    done = ask(trained, "--adapter", "plain", "--json", "turn on ", "turn left ")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {
            "prompt": f"turn {word} ",
            "completion": word.upper(),
            "num_prompt_tokens": len(f"^turn {word} "),
            "num_tokens": len(word),
            "ended_by": "end",
        }
        for word in WORDS
    ]


def test_why_an_answer_was_cut_is_told(trained):
    short = ask(trained, "--adapter", "plain", "--max-tokens", "1", "turn on ")
    assert short.stdout == "O\n"
    assert "note: ended by --max-tokens 1" in short.stderr
    full = ask(trained, "--raw", "--max-tokens", "60", "x" * 90)
    assert "note: ended after 5 of --max-tokens 60, for the model's context is full" in full.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--raw", "x" * 100], "the prompt has 101 tokens, and the model's context holds 96"),
        (["x" * 100], "has 119 tokens, those of its template counted, and the model's context holds 96"),
        (["--raw", "--system", "Shout.", "hi"], "--system is a turn of a chat"),
        (["--top-p", "0", "hi"], "--top-p is 0"),
        (["-", "-"], "can be read only once"),
        ([], "standard input is empty"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_status_1(trained, arguments, part):
    done = ask(trained, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert part in done.stderr.splitlines()[-1]


def test_the_same_seed_gives_the_same_answer(trained):
    sampled = ("--temperature", "1.5", "--top-p", "0.9", "--raw", "turn ")
    one, again, other = (ask(trained, "--seed", seed, *sampled).stdout for seed in ("1", "1", "2"))
    assert one == again != other


def test_text_appears_before_the_answer_is_done_and_ctrl_c_ends_it(trained):
    make_toy_base(trained / "slow", dim=512, max_tokens=4000)
    command = [
        sys.executable,
        "-m",
        "tunefleet",
        "generate",
        "--base",
        "slow",
        "--raw",
        "--max-tokens",
        "3900",
    ]
    with subprocess.Popen(
        [*command, "--temperature", "1", "go"],
        cwd=trained,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout.read(3)
        assert process.poll() is None
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        errors = process.stderr.read().decode()
        assert process.wait(30) != 0
        assert time.monotonic() - began < 10
        assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
