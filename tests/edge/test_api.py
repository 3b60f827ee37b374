"""Training, scoring and generating from Python: the commands' own code, in scripts, threads and notebooks."""

import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tunefleet
from converters.command import unfold
from edge.backends.toy import make_toy_base
from edge.commands.evaluate import evaluate
from edge.commands.generate import generate
from edge.commands.train import train
from edge.errors import ConfigError, DataError

ROWS = [{"prompt": f"light {n} on", "completion": f" set({n}, 1)"} for n in range(8)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_toy_base(tmp_path / "base")


def test_rows_and_a_file_of_them_train_the_same_adapter_as_the_command(base, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    from_rows = tunefleet.train(base, ROWS, steps=3, rank=4)
    from_file = tunefleet.train(str(base), file, steps=3, rank=4, out=tmp_path / "out")
    command = [
        "train",
        "--base",
        base,
        "--data",
        file,
        "--steps",
        "3",
        "--rank",
        "4",
        "--out",
        tmp_path / "by",
    ]
    subprocess.run([sys.executable, "-m", "tunefleet", *command], check=True, capture_output=True)
    assert from_rows.adapter == from_file.adapter == tunefleet.load_adapter(tmp_path / "by")
    assert (from_rows.path, from_file.path) == (None, tmp_path / "out")
    written = json.loads((tmp_path / "by/metrics.json").read_bytes())
    assert from_rows.metrics["losses"] == written["losses"]
    assert from_rows.metrics.keys() == written.keys() - {"adapter"}


def test_an_adapter_in_memory_can_be_trained_on_scored_and_asked(base):
    first = tunefleet.train(base, ROWS, epochs=20, rank=4, lr=1e-2, targets="q_proj, k_proj,v_proj,o_proj")
    plain, taught = (tunefleet.evaluate(base, ROWS, adapter=adapter) for adapter in (None, first.adapter))
    assert taught.loss < plain.loss
    second = tunefleet.train(base, iter(ROWS), adapter=first.adapter, steps=1, valid=ROWS)
    assert second.metrics["valid_before"]["loss"] == taught.loss
    prompts = ["light 1 on", "light 2 on"]
    told = tunefleet.generate(base, prompts, adapter=first.adapter, max_tokens=4)
    assert len(told) == 2
    assert tunefleet.generate(base, prompts[0], adapter=first.adapter, max_tokens=4) == told[:1]


def test_defaults_are_the_commands():
    for function, command in (
        (tunefleet.train, unfold(train)),
        (tunefleet.evaluate, unfold(evaluate)),
        (tunefleet.generate, unfold(generate)),
    ):
        ours, theirs = (defaults(one) for one in (function, command))
        shared = ours.keys() & theirs.keys() - {"out"}
        assert {"backend", "precision", "adapter"} <= shared
        assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def defaults(function) -> dict[str, object]:
    found = {name: one.default for name, one in inspect.signature(function).parameters.items()}
    plain = {name: value for name, value in found.items() if value is not inspect.Parameter.empty}
    if isinstance(plain.get("targets"), str):
        plain["targets"] = tuple(plain["targets"].split(","))
    return plain


def test_what_cannot_be_used_is_the_commands_error_with_the_row(base):
    with pytest.raises(DataError, match=r"^data: 1 of 2 rows cannot be used: 1 lacks \"prompt\" \(line 2\)"):
        tunefleet.train(base, [ROWS[0], {"promp": "x", "completion": "y"}])
    with pytest.raises(DataError, match=r"^valid: row 2 is list, expected a mapping such as"):
        tunefleet.train(base, ROWS, valid=[ROWS[0], []])
    with pytest.raises(DataError, match=r"^data: row 1 is str, .*of a table give table.to_dict\('records'\)"):
        tunefleet.evaluate(base, iter(["prompt", "completion"]))
    with pytest.raises(DataError, match=r"^data: row 1 cannot be written as JSON: .*object"):
        tunefleet.evaluate(base, [{"text": object()}])
    with pytest.raises(ConfigError, match=r"Expected `int`, got `str` - at `\$.rank`"):
        tunefleet.train(base, ROWS, rank="8")
    with pytest.raises(tunefleet.TunefleetError, match="/nowhere"):
        tunefleet.generate("/nowhere", "x")


def test_it_works_where_an_event_loop_runs_already(base):
    async def cell() -> float:  # as in a notebook: plain code below a running loop
        tunefleet.train(base, ROWS, steps=1)
        return tunefleet.evaluate(base, ROWS).loss

    assert asyncio.run(cell()) == tunefleet.evaluate(base, ROWS).loss


SCRIPT = """
import asyncio, sys, tunefleet

def work():
    return tunefleet.train(sys.argv[1], [{"text": "on and on"}], seconds=600, on_progress=tell)

told = []

def tell(progress):
    if not told:
        print("training", flush=True)
    told.append(progress)

async def cell():
    work()

if __name__ == "__main__":
    match sys.argv[2]:
        case "script":
            work()
        case "coroutine":
            asyncio.run(cell())
        case "notebook":  # whose Ctrl-C is a KeyboardInterrupt wherever the cell is
            asyncio.new_event_loop().run_until_complete(cell())
"""


@pytest.mark.parametrize("place", ["script", "coroutine", "notebook"])
def test_ctrl_c_ends_a_call_and_leaves_no_process(base, tmp_path, place):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py", base, place]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout.readline() == "training\n"
            process.send_signal(signal.SIGINT)  # to it alone, as a notebook's interrupt
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert "KeyboardInterrupt" in said
    assert process.returncode in (-signal.SIGINT, 1), said
    with pytest.raises(ProcessLookupError):  # nobody is left in its session
        os.killpg(process.pid, 0)


def test_it_works_from_standard_input_and_in_spawned_processes(base, tmp_path):
    script = f"""
import multiprocessing, tunefleet

if __name__ == "__main__":
    print(tunefleet.train({str(base)!r}, [dict(text="on and on")], steps=1).metrics["num_steps"])
"""
    command = [sys.executable, "-"]
    done = subprocess.run(command, input=script, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "1\n"
    (tmp_path / "spawning.py").write_text(
        f"""
import multiprocessing, tunefleet

def losses(seed):
    return tunefleet.train({str(base)!r}, [dict(text="on and on")], steps=1, seed=seed).metrics["num_steps"]

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(pool.map(losses, [0, 1]))
"""
    )
    command = [sys.executable, tmp_path / "spawning.py"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[1, 1]\n"


def test_importing_it_imports_nothing_heavy():
    probe = (
        "import sys, tunefleet; tunefleet.LoraAdapter; print({'torch', 'paho', 'sqlite3'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
