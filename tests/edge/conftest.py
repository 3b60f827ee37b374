"""A toy base, a small file of examples, an adapter to begin with, and data in every kind of file."""

import csv
import json
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from converters.adapter import initial_adapter
from converters.bases.read import read_base
from converters.bases.targets import match_targets
from converters.formats.canonical import save_adapter
from edge.backends.toy import load, make_toy_base
from edge.training.data.dataset import load_dataset
from edge.training.data.source import DataSource

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


@pytest.fixture(scope="session")
def write_data():
    """`write_data(folder, kind, rows)` writes the same rows as one kind of file or folder."""
    return _write_data


def _write_data(folder: Path, kind: str, rows: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    match kind:
        case "parquet" | "saved" | "saved-dict":
            return _write_arrow(folder, kind, rows)
        case "csv" | "semicolons" | "tsv":
            return _write_table(folder, kind, rows)
        case "json":
            (folder / "data.json").write_text(json.dumps(rows, indent=1))
            return folder / "data.json"
    path = folder / ("train.jsonl" if kind == "mlx-lm" else "data.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder if kind == "mlx-lm" else path


def _write_table(folder: Path, kind: str, rows: list[dict]) -> Path:
    path = folder / ("data.tsv" if kind == "tsv" else "data.csv")
    delimiter = {"csv": ",", "semicolons": ";", "tsv": "\t"}[kind]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)
    return path


def _write_arrow(folder: Path, kind: str, rows: list[dict]) -> Path:
    datasets = pytest.importorskip("datasets", reason="needs the data extra")
    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_list(rows)
    if kind == "parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(dataset.data.table, folder / "data.parquet")
        return folder / "data.parquet"
    parts = datasets.DatasetDict({"train": dataset, "test": dataset.select([0])})
    (dataset if kind == "saved" else parts).save_to_disk(folder / kind)
    return folder / kind
