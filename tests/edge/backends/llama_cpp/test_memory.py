"""What a pass is said to take is what it takes, and too little memory is told before it is taken."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from converters.adapter import initial_adapter
from converters.bases.read import read_base
from converters.bases.targets import match_targets
from converters.formats.canonical import save_adapter
from edge.backends.contract import Batch
from edge.errors import OutOfMemory
from edge.training.data.source import DataSource
from edge.training.plan import Plan
from edge.training.requests import Training
from edge.training.worker.supervisor import Worker

pytest.importorskip("llama_cpp", reason="needs the llama extra")
pytest.importorskip("gguf", reason="needs the llama extra")

from edge.backends.llama_cpp.memory import Memory
from edge.backends.llama_cpp.model import load_model

pytestmark = pytest.mark.llama
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "max_position_embeddings": 1024,
}
PEAK = """
import sys
from pathlib import Path
import numpy as np
from converters.adapter import initial_adapter
from edge.backends import load_model
from edge.backends.contract import Batch
from edge.backends.llama_cpp.memory import Room
model, count = load_model("llama_cpp", Path(sys.argv[1])), int(sys.argv[2])
model.set_adapter(initial_adapter(dict(model.card.modules), rank=8, scale=2.0, seed=0))
model.begin(weight_decay=0.0, clip_norm=1.0)
tokens = np.full(count, 2, np.int32)
model.step([Batch(tokens, tokens, np.ones(count, np.float32), np.array([count]))], 0.0)
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
print(Room(model.gguf).need(count, count, model.parameters.size, keeps=True).total)
"""


@pytest.fixture
def system(tmp_path):
    """`system({path: text, ...})` writes files that the kernel would show, and gives what they tell."""

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return Memory(tmp_path / "proc", tmp_path / "cgroup")

    return write


@pytest.mark.skipif(not Memory().proc.exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("num_tokens", [64, 1024])
def test_a_step_takes_what_was_estimated(make_gguf, num_tokens):
    command = [sys.executable, "-c", PEAK, str(make_gguf("llama", **SIZES)), str(num_tokens)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak, estimate = map(int, output.split())
    assert 0.85 * peak < estimate < 1.25 * peak


def test_too_little_memory_is_told_before_the_model_is_loaded(make_gguf, system):
    path = make_gguf("llama")
    small = system({"proc/meminfo": "MemTotal: 99000 kB\nMemAvailable: 30000 kB\nSwapFree: 1000 kB\n"})
    told = (
        "llama-f32.gguf: loading it needs 70 MB (weights 0 MB, context 2 MB) of memory, and 32 MB are there;"
    )
    with pytest.raises(OutOfMemory, match=re.escape(told)):
        load_model(path, memory=small)


def test_too_little_memory_for_a_step_is_told_before_the_step(make_gguf, system):
    model = load_model(make_gguf("llama"), memory=system({"proc/meminfo": "MemAvailable: 9000000 kB\n"}))
    model.set_adapter(initial_adapter(dict(model.card.modules), rank=8, scale=2.0, seed=0))
    system({"proc/meminfo": "MemAvailable: 69000 kB\n"})
    with pytest.raises(OutOfMemory, match=r"256 tokens at once need .* tape .*, and 71 MB are there"):
        model.step([one_example(256)], 0.1)
    assert model.step([one_example(8)], 0.1) > 0


def test_what_is_free_and_what_can_be_swapped_out_is_there(system):
    found = system({"proc/meminfo": "MemFree: 1 kB\nMemAvailable: 300 kB\nSwapTotal: 9 kB\nSwapFree: 8 kB\n"})
    assert found.available_bytes == 308 * 1024


def test_a_control_groups_limit_counts_and_its_file_cache_does_not(system):
    """Version 2; the container's own limit is larger than that of the group around it."""
    found = system(
        {
            "proc/meminfo": "MemAvailable: 300000 kB\n",
            "proc/self/cgroup": "0::/box/inner\n",
            "cgroup/box/inner/memory.max": "max\n",
            "cgroup/box/inner/memory.current": "70000\n",
            "cgroup/box/memory.max": "100000\n",
            "cgroup/box/memory.current": "80000\n",
            "cgroup/box/memory.stat": "anon 1000\nfile 9000\ninactive_file 6000\nactive_file 3000\n",
        }
    )
    assert found.available_bytes == 100000 - 80000 + 9000


def test_a_limit_of_version_1_is_found_where_a_container_sees_it(system):
    found = system(
        {
            "proc/meminfo": "MemAvailable: 300000 kB\n",
            "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/docker/c0ffee\n",
            "cgroup/memory/memory.limit_in_bytes": "90000\n",
            "cgroup/memory/memory.usage_in_bytes": "50000\n",
            "cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 2000\ntotal_active_file 300\n",
        }
    )
    assert found.available_bytes == 90000 - 50000 + 2300


def test_a_system_that_tells_nothing_has_what_is_built_in(system):
    nothing = system({})
    assert nothing.available_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert nothing.held_bytes == 0


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="prlimit is Linux's own")
def test_a_failed_allocation_is_want_of_memory_and_smaller_parts_help(make_gguf, tmp_path, monkeypatch):
    """The process may grow by little, then by a little more, until a part of the step fits."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # a freed array is gone, and counts no more
    monkeypatch.setenv("MALLOC_TOP_PAD_", "4194304")  # room for what is small: NumPy crashes without
    base = make_gguf("llama", **SIZES)
    rows = [{"text": f"{word} " * 15} for word in ("one", "two", "six", "ten") * 8]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    targets = match_targets(read_base(base).modules, ["q_proj", "down_proj"])
    save_adapter(initial_adapter(targets, rank=4, scale=2.0, seed=0), tmp_path / "begin.safetensors")
    task = Training(
        adapter=str(tmp_path / "begin.safetensors"),
        data=DataSource(path=str(tmp_path / "data.jsonl")),
        plan=Plan(steps=1, seq_tokens=64, batch_tokens=1024),
        folder=str(tmp_path / "first"),
    )

    async def run():
        async with Worker(base) as worker:
            whole = await worker.train(task)  # threads and their buffers are there from here on
            size, again = data_bytes(worker.pid), structs.replace(task, folder=str(tmp_path / "again"))
            for room in itertools.count(0, 1 << 20):
                resource.prlimit(worker.pid, resource.RLIMIT_DATA, (size + room, resource.RLIM_INFINITY))
                with contextlib.suppress(OutOfMemory):
                    return whole, await worker.train(again)
            raise AssertionError

    whole, parted = asyncio.run(run())
    assert (whole.micro_batch_tokens, parted.micro_batch_tokens > 0) == (0, True)
    assert parted.loss_before == pytest.approx(whole.loss_before)


def data_bytes(pid):
    """What a process has of its own, as RLIMIT_DATA counts."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))


def one_example(num_tokens):
    tokens = np.full(num_tokens, 2, np.int32)
    return Batch(tokens, tokens, np.ones(num_tokens, np.float32), np.array([num_tokens]))
