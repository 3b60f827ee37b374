"""A base model in a process of its own, with an adapter of any format: what is scored, and asked."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from converters.adapter import LoraAdapter
from converters.bases.hub import find_base
from converters.bases.read import read_base
from converters.formats.canonical import save_adapter
from converters.formats.load import load_any
from edge.choices import BackendName, Precision
from edge.training.data.check import check_source, held_out
from edge.training.data.source import DataSource
from edge.training.requests import Evaluation, Loaded, Scoring
from edge.training.worker.supervisor import Worker


class LocalModel(NamedTuple):
    """A base model, and what it is scored or asked with."""

    worker: Worker
    adapter: str | None  # a canonical file


class Scored(NamedTuple):
    """How well data is predicted, and by what."""

    loaded: Loaded
    evaluation: Evaluation


@asynccontextmanager
async def open_model(
    base: str, adapter: LoraAdapter | Path | None, backend: BackendName, precision: Precision
) -> AsyncIterator[LocalModel]:
    """Gives a base model, loaded when it is first asked, and an adapter of any format as it reads it.

    Raises:
        BaseModelError: The base is not there.
        AdapterError, UnsupportedAdapter: The adapter cannot be read, or does not fit the base.
    """
    found = find_base(base)
    with canonical_file(adapter, found) as path:
        async with Worker(found, backend, precision) as worker:
            yield LocalModel(worker, str(path) if path else None)


async def evaluate_locally(
    base: str,
    data: DataSource,
    adapter: LoraAdapter | Path | None = None,
    *,
    backend: BackendName,
    precision: Precision,
    seq_tokens: int,
    batch_tokens: int,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Scored:
    """Scores a base model on data, with an adapter or without.

    Args:
        base: A folder, a GGUF file, or a hub name.
        data: Of a folder with several parts the one for validation or tests.
        adapter: In memory, or the path of one of any format.
        backend: What computes.
        precision: Of the forward pass.
        seq_tokens: Of the longest row.
        batch_tokens: Computed at a time.
        on_stage: Called with what begins.

    Raises:
        TunefleetError: As the worker's, and `open_model`'s.
    """
    source = held_out(data)
    on_stage(f"reading {source.path}")
    on_stage(f"reads {check_source(source)}")
    on_stage(f"loading {base}")
    async with open_model(base, adapter, backend, precision) as model:
        loaded = await model.worker.load()
        on_stage(f"scoring {source.path} with {loaded.described}")
        request = Scoring(
            adapter=model.adapter,
            data=source,
            seq_tokens=seq_tokens,
            batch_tokens=batch_tokens,
            precision=precision,
        )
        return Scored(loaded, await model.worker.score(request))


@contextmanager
def canonical_file(adapter: LoraAdapter | Path | None, base: Path) -> Iterator[Path | None]:
    """Gives a canonical file of an adapter, in memory or of any format, while it is needed; None for none."""
    if adapter is None:
        yield None
        return
    with TemporaryDirectory(prefix="tunefleet-") as folder:
        path = Path(folder) / "adapter.safetensors"
        loaded = adapter if isinstance(adapter, LoraAdapter) else load_any(adapter, read_base(base))
        save_adapter(loaded, path)
        yield path
