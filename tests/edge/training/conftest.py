"""A toy base, a small file of examples, and an adapter to begin with."""

import json
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from converters.adapter import initial_adapter
from converters.base import match_targets, read_base
from converters.canonical import save_adapter
from edge.training.backends.toy import load, make_toy_base
from edge.training.dataset import DataSource, load_dataset

WORDS = ("on", "off", "left", "right", "up", "down", "in", "out")


@pytest.fixture
def base(tmp_path) -> Path:
    return make_toy_base(tmp_path / "base", seed=0)


@pytest.fixture
def model(base):
    return load(base)


@pytest.fixture
def source(tmp_path) -> DataSource:
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"turn {word} ", "completion": word.upper()} for word in WORDS]
    path.write_text("\n".join(map(json.dumps, rows)))
    return DataSource(path=str(path))


@pytest.fixture
def dataset(source, model):
    return load_dataset(source, model.tokenizer, seq_tokens=64)


@pytest.fixture
def adapter(base):
    modules = match_targets(read_base(base).modules, ["q_proj", "v_proj"])
    return initial_adapter(modules, rank=4, scale=2.0, seed=0)


@pytest.fixture
def adapter_file(adapter, tmp_path) -> Path:
    path = tmp_path / "begin.safetensors"
    save_adapter(adapter, path)
    return path


@pytest.fixture
def small_disk():
    """Files above 256 KiB do not fit while this is entered."""

    @contextmanager
    def limited():
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, old[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, ignored)

    return limited
