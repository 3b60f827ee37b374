import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edge.training.checkpoint import FILE
from edge.training.plan import Plan
from edge.training.requests import Failed, Loaded, Progress, Reply, Result, Training

NOISY = """
import os, sys
from edge.backends import toy
from edge.training.worker.main import main
quiet = toy.load
def load(*args, **settings):
    print("a library's banner", flush=True)
    os.write(1, b"and its C code's\\n")
    return quiet(*args, **settings)
toy.load = load
main(*sys.argv[1:])
"""


@pytest.fixture
def child(base):
    started = []

    def start(*command, path=base):
        process = subprocess.Popen(
            [sys.executable, *(command or ("-m", "edge.training.worker.main")), str(path), "toy", "auto"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def task(source, adapter_file, tmp_path):
    plan = Plan(steps=1000, seq_tokens=64, batch_tokens=128)
    return Training(
        adapter=str(adapter_file), data=source, plan=plan, folder=str(tmp_path / "task"), slowdown=500.0
    )


def receive(process):
    return msgspec.json.decode(process.stdout.readline(), type=Reply)


def send(process, request):
    process.stdin.write(msgspec.json.encode(request) + b"\n")
    process.stdin.flush()


def begin(process, task):
    assert isinstance(receive(process), Loaded)
    send(process, task)
    assert isinstance(receive(process), Progress)


def last(process):
    return msgspec.json.decode(process.stdout.read().splitlines()[-1], type=Reply)


def test_a_child_whose_parent_dies_leaves_a_checkpoint_and_ends(child, task, tmp_path):
    process = child()
    begin(process, task)
    process.stdin.close()
    assert process.wait(30) == 0
    assert (tmp_path / "task" / FILE).exists()


def test_a_child_whose_parent_reads_no_more_leaves_a_checkpoint_and_ends(child, task, tmp_path):
    process = child()
    begin(process, task)
    process.stdout.close()
    process.stdin.close()
    assert process.wait(30) == 0
    assert (tmp_path / "task" / FILE).exists()


def test_a_child_that_is_terminated_reports_its_unfinished_result(child, task):
    process = child()
    begin(process, task)
    process.send_signal(signal.SIGTERM)
    result = last(process)
    assert isinstance(result, Result)
    assert not result.is_complete
    assert process.wait(30) == 0


def test_an_idle_child_that_is_terminated_ends(child):
    process = child()
    receive(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_a_child_leaves_ctrl_c_to_its_parent(child, task):
    process = child()
    begin(process, task)
    process.send_signal(signal.SIGINT)
    process.stdin.close()
    assert isinstance(last(process), Result)


def test_what_a_library_prints_does_not_reach_the_parent(child):
    process = child("-c", NOISY)
    assert isinstance(receive(process), Loaded)
    process.stdin.close()
    assert process.stdout.read() == b""
    assert process.stderr.read().splitlines() == [b"a library's banner", b"and its C code's"]


def test_a_base_that_cannot_be_loaded_is_reported(child, tmp_path):
    process = child(path=tmp_path / "nowhere")
    failed = receive(process)
    assert isinstance(failed, Failed)
    assert failed.error == "BaseModelError"
    assert process.wait(30) == 0


def test_a_task_without_room_for_its_checkpoint_is_reported(child, task):
    process = child(
        "-c",
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64));"
        "import sys; from edge.training.worker.main import main; main(*sys.argv[1:])",
    )
    assert isinstance(receive(process), Loaded)
    send(process, msgspec.structs.replace(task, plan=Plan(steps=1), slowdown=1.0))
    replies = [receive(process), receive(process)]
    assert isinstance(replies[1], Failed)
    assert replies[1].error == "DiskFull"
    assert list(Path(task.folder).iterdir()) == []
