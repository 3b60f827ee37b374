"""A run goes on in the precision that it began in, and scores are taken in float32 whatever is trained in."""

import json
import os
import shutil
import subprocess
import sys
from threading import Event

import pytest
from msgspec import structs
from safetensors import safe_open
from safetensors.numpy import save

from converters.adapter import initial_adapter
from converters.bases.read import read_base
from converters.bases.targets import match_targets
from converters.formats.canonical import load_adapter, save_adapter
from edge.backends import load_model
from edge.errors import StateError
from edge.training.checkpoint import (
    FILE,
    Checkpoint,
    Tally,
    checkpoint_precision,
    load_checkpoint,
    save_checkpoint,
)
from edge.training.data.source import DataSource
from edge.training.plan import Plan
from edge.training.requests import Scoring, Training
from edge.training.worker.held_model import HeldModel
from edge.training.worker.model_server import ModelServer

pytestmark = pytest.mark.torch
pytest.importorskip("peft", reason="needs the torch extra")
WORDS = ("on", "off", "left", "right", "up", "down", "in", "out")
STEPS = 4


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    rows = [{"prompt": f"turn {word} ", "completion": word.upper()} for word in WORDS]
    path.write_text("\n".join(map(json.dumps, rows)))
    return DataSource(path=str(path))


@pytest.fixture
def task(llama_base, source, tmp_path):
    modules = match_targets(read_base(llama_base).modules, ["q_proj", "v_proj"])
    save_adapter(initial_adapter(modules, rank=4, scale=2.0, seed=0), tmp_path / "begin.safetensors")
    plan = Plan(steps=STEPS, lr=0.02, seq_tokens=64, batch_tokens=128, checkpoint_every_s=0.0)
    return Training(
        adapter=str(tmp_path / "begin.safetensors"), data=source, plan=plan, folder=str(tmp_path / "task")
    )


@pytest.fixture
def session(llama_base):
    """`session(precision)`: as the worker process holds a model; `stops_after` a step of its task."""

    def begin(precision, stops_after=None):
        stop = Event()
        held = HeldModel(lambda chosen: load_model("torch", llama_base, precision=chosen), precision)
        return ModelServer(held, stop, lambda progress: stop.set() if progress.step == stops_after else None)

    return begin


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_resumed_run_keeps_its_precision_to_the_last_bit(session, task, precision, tmp_path):
    whole = session(precision).answer(task)
    expected = load_adapter(tmp_path / "task" / "adapter.safetensors")
    shutil.rmtree(tmp_path / "task")
    part = session(precision, stops_after=1).answer(task)
    assert not part.is_complete
    assert checkpoint_precision(tmp_path / "task") == precision
    rest = session("auto").answer(task)  # which alone may choose the other
    assert (rest.is_complete, rest.precision, rest.losses) == (True, precision, whole.losses)
    assert load_adapter(tmp_path / "task" / "adapter.safetensors") == expected


def test_a_run_is_not_resumed_in_another_precision_than_it_began_in(session, task):
    session("bfloat16", stops_after=1).answer(task)
    with pytest.raises(StateError, match=r"was trained in bfloat16, and this run is in float32; resume with"):
        session("float32").answer(task)


def test_a_checkpoint_that_does_not_tell_its_precision_is_continued(tmp_path):
    save_checkpoint(Checkpoint(Tally(num_steps=1), [0.5], {}, "bfloat16"), tmp_path, "a task")
    path = tmp_path / FILE
    with safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()["tunefleet"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    assert header.pop("precision") == "bfloat16"  # as it was written before there was one
    path.write_bytes(save(tensors, {"tunefleet": json.dumps(header)}))
    assert checkpoint_precision(tmp_path) is None
    assert load_checkpoint(tmp_path, "a task").precision is None


def test_scores_are_in_float32_whatever_is_trained_in(session, source):
    asked = Scoring(adapter=None, data=source, seq_tokens=64, batch_tokens=128)
    in_half, in_full = session("bfloat16"), session("float32")
    scores = [one.answer(asked) for one in (in_half, in_full)]
    assert scores[0] == scores[1]
    assert scores[0].precision == "float32"
    own = in_half.answer(structs.replace(asked, precision="auto"))
    assert own.precision == "bfloat16"
    assert own.loss != scores[0].loss
    assert in_half.answer(asked) == scores[0]


def test_a_precision_that_cannot_be_had_leaves_the_model_as_it_trains(llama_base):
    held = HeldModel(lambda precision: load_model("torch", llama_base, precision=precision), "float32")
    with pytest.raises(Exception, match="backend torch trains in float32 or bfloat16"):
        held.compute_in("float16")
    assert held.model.card.precision == "float32"


def tunefleet(*words):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    line = [sys.executable, "-m", "tunefleet", *map(str, words)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240, check=True)


def test_the_commands_say_what_they_computed_in(llama_base, source, tmp_path):
    same = ("--base", llama_base, "--data", source.path, "--backend", "torch")
    sizes = ("--steps", 6, "--lr", 0.02, "--seq-tokens", 64, "--batch-tokens", 128, "--out", tmp_path / "out")
    trained = tunefleet("train", *same, *sizes, "--valid", source.path, "--json")
    report = json.loads(trained.stdout)
    assert report["precision"] in ("float32", "bfloat16")
    assert report["precision_why"].startswith(("tried: ", "not tried: "))
    assert report["valid_before"]["precision"] == report["valid_after"]["precision"] == "float32"
    scored = tunefleet("eval", *same, "--seq-tokens", 64, "--adapter", tmp_path / "out", "--json")
    evaluation = json.loads(scored.stdout)
    assert (evaluation["precision"], evaluation["backend"]) == ("float32", "torch")
    assert evaluation["loss"] == pytest.approx(report["valid_after"]["loss"], abs=1e-5)
    half = tunefleet("eval", *same, "--seq-tokens", 64, "--precision", "bfloat16")
    assert "precision    bfloat16" in half.stdout
    assert "with torch in bfloat16" in half.stderr
