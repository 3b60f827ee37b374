"""Runs on a quantised base: killed and resumed, and long."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from converters.adapter import initial_adapter
from converters.bases.gguf import read_gguf
from converters.bases.targets import match_targets
from converters.formats.canonical import load_adapter, save_adapter
from edge.backends import load_model
from edge.errors import BackendError
from edge.training.data.source import DataSource
from edge.training.packing import Example, build_batch
from edge.training.plan import Plan
from edge.training.requests import Training
from edge.training.worker.supervisor import Worker

pytestmark = pytest.mark.llama
pytest.importorskip("llama_cpp", reason="needs the llama extra")
ROWS = [{"prompt": f"turn lamp {n} ", "completion": "on" * (1 + n % 5)} for n in range(24)]
SIZES = """
import os, sys
from pathlib import Path
import numpy as np
from converters.adapter import initial_adapter
from edge.backends import load_model
from edge.backends.contract import Sampling
from edge.training.packing import Example, build_batch

model, random = load_model("llama_cpp", Path(sys.argv[1])), np.random.default_rng(0)
model.set_adapter(initial_adapter(dict(model.card.modules), rank=8, scale=2.0, seed=0))
model.begin(weight_decay=0.0, clip_norm=1.0)
for step in range(1, 151):
    lengths = [120, *random.integers(2, 100, 3)]  # other ones each time, none longer than the first
    examples = [
        Example(random.integers(2, 250, n).astype(np.int32), np.arange(n) >= random.integers(n))
        for n in lengths
    ]
    model.step([build_batch(examples)], 1e-3)
    if step % 50 == 0:
        model.score(build_batch(examples[:3]))
        model.generate([[2, 3, 4]], Sampling(max_tokens=4))
        print(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
"""


@pytest.fixture
def base(make_gguf):
    return make_gguf("llama", "q4_0")


@pytest.fixture
def task(base, tmp_path):
    data, begin = tmp_path / "data.jsonl", tmp_path / "begin.safetensors"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    modules = match_targets(read_gguf(base).modules, ["q_proj", "v_proj", "down_proj"])
    save_adapter(initial_adapter(modules, rank=4, scale=2.0, seed=0), begin)
    plan = Plan(steps=12, lr=0.02, seq_tokens=64, batch_tokens=128, checkpoint_every_s=0.0)
    return Training(
        adapter=str(begin), data=DataSource(path=str(data)), plan=plan, folder=str(tmp_path / "task")
    )


def test_a_run_killed_on_a_q4_0_base_is_resumed_to_the_same_adapter(base, task, tmp_path):
    async def run():
        steps = []
        is_under_way = asyncio.Event()

        def tell(progress):
            steps.append(progress.step)
            if progress.step >= 3:  # not every step is told
                is_under_way.set()

        async with Worker(base) as worker:
            training = asyncio.create_task(worker.train(structs.replace(task, slowdown=20.0), tell))
            await is_under_way.wait()
            os.kill(worker.pid, signal.SIGKILL)
            with pytest.raises(BackendError):
                await training
            steps.append("killed")
            resumed = await worker.train(task, tell)
            return steps, resumed, await worker.train(structs.replace(task, folder=str(tmp_path / "whole")))

    steps, resumed, whole = asyncio.run(run())
    assert 1 < steps[steps.index("killed") + 1] < 12  # it did not begin anew
    assert resumed.is_complete
    assert resumed.losses == whole.losses
    assert load_adapter(Path(resumed.adapter)) == load_adapter(Path(whole.adapter))


def test_what_was_computed_before_changes_no_bit_of_what_comes(make_gguf):
    # A run that was resumed has a smaller context than one that has seen its longest example before.
    base = make_gguf("llama", "q4_0", max_position_embeddings=1024)
    random = np.random.default_rng(0)
    examples = [
        Example(random.integers(2, 250, n).astype(np.int32), np.ones(n, np.bool_)) for n in (700, 90, 30)
    ]
    long, short = (build_batch(chosen) for chosen in (examples[:1], examples[1:]))
    found = []
    for batches in ([long, short], [short]):
        model = load_model("llama_cpp", base)
        model.set_adapter(initial_adapter(dict(model.card.modules), rank=8, scale=2.0, seed=0))
        model.begin(weight_decay=0.0, clip_norm=1.0)
        model.step(batches[:-1] or batches, 0.0)
        model.begin(weight_decay=0.0, clip_norm=1.0)
        found.append(([model.step(batches[-1:], 0.01) for _ in range(3)], model.adapter()))
    assert found[0] == found[1]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size is read from Linux's /proc")
def test_memory_stays_as_it_is_over_many_steps(base):
    found = subprocess.run(
        [sys.executable, "-c", SIZES, str(base)], capture_output=True, text=True, check=True
    ).stdout.split()
    early, *_, late = map(int, found)  # 100 steps later
    print(f"resident: {', '.join(f'{int(size) / 2**20:.1f}' for size in found)} MB")
    assert late - early < 4 << 20
