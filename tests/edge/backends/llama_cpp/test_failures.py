"""What cannot be trained on is one line of every command, and llama.cpp's own end is not the client's."""

import asyncio
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from typer.testing import CliRunner

from converters.adapter import initial_adapter
from converters.bases.read import read_base
from converters.bases.targets import match_targets
from converters.errors import BaseModelError, TunefleetError, UnsupportedAdapter
from converters.formats.canonical import load_adapter, save_adapter
from edge.commands import cli
from edge.device.config import read_config
from edge.device.process import run_client
from edge.errors import BackendError
from edge.training.data.source import DataSource
from edge.training.plan import Plan
from edge.training.requests import Training
from edge.training.worker.supervisor import Worker

gguf = pytest.importorskip("gguf", reason="needs the llama extra")
pytest.importorskip("llama_cpp", reason="needs the llama extra")
pytestmark = pytest.mark.llama
ABORTS_ONCE = """
import os, threading, time

def abort():
    while not os.path.exists({flag!r}):
        time.sleep(0.01)
    os.remove({flag!r})
    from edge.backends.llama_cpp.native import open_library
    open_library().ggml.ggml_abort(b"ggml.c", 7, b"this test wants it")

threading.Thread(target=abort, daemon=True).start()
"""


@pytest.fixture
def source(tmp_path) -> DataSource:
    rows = [{"prompt": f"turn {word} ", "completion": word.upper()} for word in ("on", "off", "up", "down")]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return DataSource(path=str(tmp_path / "data.jsonl"))


@pytest.fixture
def task(source, tmp_path):
    def make(base):
        targets = match_targets(read_base(base).modules, ["q_proj", "v_proj"])
        save_adapter(initial_adapter(targets, rank=4, scale=2.0, seed=0), tmp_path / "begin.safetensors")
        plan = Plan(steps=20, lr=0.02, seq_tokens=64, batch_tokens=128, checkpoint_every_s=0.0)
        begin = str(tmp_path / "begin.safetensors")
        return Training(adapter=begin, data=source, plan=plan, folder=str(tmp_path / "task"))

    return make


@pytest.fixture
def spoil(make_gguf, tmp_path):
    """`spoil(how)`: a file that is no base."""
    path = tmp_path / "base.gguf"

    def cut(content: bytes) -> bytes:
        return content[:-1000]

    def retype(content: bytes) -> bytes:
        at = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8  # one dimension
        return content[:at] + struct.pack("<I", 99) + content[at + 4 :]

    def make(how: str) -> Path:
        sound = make_gguf("llama")
        if how == "vocabulary":
            return rewrite(sound, path, tensors=lambda held: {})
        if how == "architecture":
            return rewrite(sound, path, architecture="mamba")
        changed = {"other": lambda content: b"PK\3\4" + content, "cut": cut, "type": retype}
        path.write_bytes(changed[how](sound.read_bytes()))
        return path

    return make


@pytest.fixture
def mixture(make_gguf, tmp_path) -> Path:
    """A Llama with four experts in each block, as Mixtral has: llama.cpp computes it, the tape does not."""

    def add_experts(tensors):
        for name in [name for name in tensors if ".ffn_" in name and "norm" not in name]:
            stem = name.removesuffix(".weight")
            tensors[f"{stem}_exps.weight"] = np.stack([tensors.pop(name)] * 4)
        hidden = tensors["output_norm.weight"].size
        blocks = {name.split(".")[1] for name in tensors if name.startswith("blk.")}
        gates = {f"blk.{block}.ffn_gate_inp.weight": np.eye(4, hidden, dtype=np.float32) for block in blocks}
        return tensors | gates

    numbers = {"llama.expert_count": 4, "llama.expert_used_count": 2}
    return rewrite(make_gguf("llama"), tmp_path / "mixture.gguf", numbers=numbers, tensors=add_experts)


@pytest.fixture
def aborting(make_gguf, tmp_path) -> Path:
    """A file that reads well and loads, and whose graph trips over an assertion of llama.cpp's."""
    numbers = {"qwen2.rope.dimension_count": 8}
    return rewrite(make_gguf("qwen2"), tmp_path / "aborting.gguf", numbers=numbers)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("other", "is not a GGUF file"),
        ("cut", "is truncated"),
        ("vocabulary", "holds a vocabulary and no weights"),
        ("architecture", "is of architecture 'mamba', expected one of"),
        ("type", "is of the unknown type 99"),
        ("missing", "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_no_base_is_one_line_of_every_command(spoil, source, tmp_path, how, told):
    base = tmp_path / "nowhere.gguf" if how == "missing" else spoil(how)
    for command in (
        ("train", "--data", source.path, "--out", tmp_path / "out", "--steps", 1),
        ("eval", "--data", source.path),
        ("generate", "turn on"),
    ):
        assert_one_line(command, base, BaseModelError, told)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["cut", "architecture"])
def test_a_device_with_a_file_that_is_no_base_ends_before_it_connects(spoil, source, tmp_path, how):
    settings = {
        "broker": "mqtt://127.0.0.1:1",
        "fleet": "home",
        "base": str(spoil(how)),
        "data": structs.asdict(source),
        "device_id": "phone",
        "state": str(tmp_path / "state"),
    }
    with pytest.raises(BaseModelError, match=r"base\.gguf") as caught:
        asyncio.run(run_client(read_config(None, settings), lambda *_: None))
    assert "\n" not in str(caught.value)


def test_an_architecture_without_a_backward_pass_is_refused_with_its_operations(mixture, source, tmp_path):
    train = ("train", "--data", source.path, "--out", tmp_path / "out", "--steps", 1)
    assert_one_line(train, mixture, BackendError, "cannot train this architecture: no gradient of ")
    assert_one_line(train, mixture, BackendError, "MUL_MAT_ID", "--resume")
    assert invoke("eval", "--base", mixture, "--data", source.path).exit_code == 0
    assert invoke("generate", "--base", mixture, "turn on", "--max-tokens", 2).exit_code == 0


def test_an_adapter_for_another_base_is_refused_with_its_modules(make_gguf, source, tmp_path):
    wide = match_targets(read_base(make_gguf("llama", hidden_size=128)).modules, ["q_proj"])
    save_adapter(initial_adapter(wide, rank=2, scale=1.0, seed=0), tmp_path / "wide.safetensors")
    other = ("--adapter", tmp_path / "wide.safetensors")
    told = "model.layers.0.self_attn.q_proj"
    train = ("train", "--data", source.path, "--out", tmp_path / "out", "--steps", 1)
    for command in (train, ("eval", "--data", source.path), ("generate", "turn on")):
        assert_one_line(command, make_gguf("llama"), UnsupportedAdapter, told, *other)


def test_rows_longer_than_the_context_are_cut_to_it_as_on_every_backend(make_gguf, source):
    Path(source.path).write_text(json.dumps({"text": "turn left, then right, " * 30}))
    command = ("eval", "--base", make_gguf("llama"), "--data", source.path, "--json", "--seq-tokens")
    assert json.loads(invoke(*command, 4096).stdout) == json.loads(invoke(*command, 256).stdout)


def test_half_precision_and_other_kinds_of_base_are_refused_in_one_line(make_gguf, make_model):
    path = make_gguf("llama")
    assert_one_line(("generate", "a"), path, BackendError, "float32 only", "--precision", "bfloat16")
    assert_one_line(
        ("generate", "a"), path, BackendError, "backend torch does not read", "--backend", "torch"
    )
    folder = make_model("llama")
    assert_one_line(
        ("generate", "a"), folder, BackendError, "llama_cpp does not read", "--backend", "llama_cpp"
    )


def test_a_file_that_makes_llama_cpp_abort_is_an_error_with_its_last_words(aborting, source, tmp_path):
    assertion = "GGML_ASSERT(n_embd_head == n_rot) failed"
    train = ("train", "--data", source.path, "--out", tmp_path / "out", "--steps", 1)
    for command in (train, ("eval", "--data", source.path), ("generate", "turn on")):
        assert_one_line(command, aborting, BackendError, assertion)


def test_an_abort_in_the_midst_of_training_costs_nothing_but_time(make_gguf, task, tmp_path, monkeypatch):
    """ggml_abort is really called, by a thread that the child is started with."""
    flag = tmp_path / "abort now"
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text(ABORTS_ONCE.format(flag=str(flag)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "start"), str(Path.cwd())]))
    base = make_gguf("llama", "q8_0")
    slow = structs.replace(task(base), slowdown=20.0)

    async def run():
        async with Worker(base) as worker:
            with pytest.raises(BackendError, match=r"llama\.cpp stops: .*ggml\.c:7: this test wants it"):
                await worker.train(slow, lambda progress: flag.touch())
            assert worker.pid is None
            resumed = await worker.train(structs.replace(slow, slowdown=1.0))
            whole = structs.replace(slow, slowdown=1.0, folder=str(tmp_path / "whole"))
            return resumed, await worker.train(whole)

    resumed, whole = asyncio.run(run())
    assert resumed.losses == whole.losses
    assert load_adapter(Path(resumed.adapter)) == load_adapter(Path(whole.adapter))


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def assert_one_line(command, base, kind: type[TunefleetError], told: str, *options) -> None:
    result = invoke(command[0], "--base", base, *command[1:], *options)
    assert isinstance(result.exception, kind), result.output
    assert told in str(result.exception)
    assert "\n" not in str(result.exception)


def rewrite(source: Path, target: Path, architecture=None, numbers=None, tensors=lambda held: held) -> Path:
    """Writes a GGUF file again with something changed."""
    reader = gguf.GGUFReader(source)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    own = fields.pop("general.architecture").contents()
    writer = gguf.GGUFWriter(target, architecture or own)
    for name, field in fields.items():
        if name not in (numbers or {}):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for name, number in (numbers or {}).items():
        writer.add_uint32(name, number)
    for name, values in tensors({tensor.name: np.array(tensor.data) for tensor in reader.tensors}).items():
        writer.add_tensor(name, values)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return target
