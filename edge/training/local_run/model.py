"""A base model in a process of its own, with an adapter of any format: what is scored, and asked."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from msgspec import structs

from converters.adapter import LoraAdapter
from converters.bases.read import find_base, read_base
from converters.formats.canonical import save_adapter
from converters.formats.load import load_any
from edge.choices import BackendName, Precision
from edge.training.data.check import check_source, held_out
from edge.training.requests import Evaluation, Loaded, Scoring
from edge.training.worker.supervisor import Worker

Adapter = LoraAdapter | str | Path  # in memory, or of any format


class LocalModel(NamedTuple):
    """A base model, and what it is scored or asked with."""

    worker: Worker
    adapter: str | None  # a canonical file


@asynccontextmanager
async def open_model(
    base: str, adapter: Adapter | None, backend: BackendName, precision: Precision
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
    request: Scoring,
    adapter: Adapter | None,
    backend: BackendName,
    on_stage: Callable[[str], None] = lambda _: None,
) -> tuple[Loaded, Evaluation]:
    """Scores a base model on data, with an adapter or without, and tells what was loaded.

    Args:
        base: A folder, a GGUF file, or a hub name.
        request: Without its adapter; of a folder with several parts the one for validation or tests is meant.
        adapter: In memory, or the path of one of any format.
        backend: What computes.
        on_stage: Called with what begins.

    Raises:
        TunefleetError: As the worker's, and `open_model`'s.
    """
    source = held_out(request.data)
    on_stage(f"reading {source.path}")
    on_stage(f"reads {check_source(source)}")
    on_stage(f"loading {base}")
    async with open_model(base, adapter, backend, request.precision) as model:
        loaded = await model.worker.load()
        on_stage(f"scoring {source.path} with {loaded.described}")
        request = structs.replace(request, adapter=model.adapter, data=source)
        return loaded, await model.worker.score(request)


@contextmanager
def canonical_file(adapter: Adapter | None, base: Path) -> Iterator[Path | None]:
    """Gives a canonical file of an adapter, in memory or of any format, while it is needed; None for none."""
    if adapter is None:
        yield None
        return
    with TemporaryDirectory(prefix="tunefleet-") as folder:
        path = Path(folder) / "adapter.safetensors"
        loaded = adapter if isinstance(adapter, LoraAdapter) else load_any(Path(adapter), read_base(base))
        save_adapter(loaded, path)
        yield path
