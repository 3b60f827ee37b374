"""Fine-tuning on this machine alone, without a fleet: what `tunefleet train` and `tunefleet eval` do.

The run's checkpoints lie in `checkpoint/` below its output folder until the adapter is written.
"""

import asyncio
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from msgspec import Struct, structs

from converters.about import NOTHING, About
from converters.adapter import LoraAdapter, initial_adapter
from converters.base import Base, match_targets, read_base
from converters.canonical import load_adapter, save_adapter
from converters.card import Lineage
from converters.formats import Format, load_any, read_about, save_as
from converters.gguf_naming import naming_of
from edge.disk import room_for, write_file
from edge.errors import ConfigError, StateError
from edge.training.backends import BackendName
from edge.training.backends.base import Precision
from edge.training.backends.hub import find_base
from edge.training.checkpoint import FILE
from edge.training.data.check import check_source
from edge.training.data.folders import locate
from edge.training.data.forms import Asking
from edge.training.dataset import DataSource
from edge.training.plan import Plan
from edge.training.task import Evaluation, Loaded, Progress, Result, Task
from edge.training.worker import Worker

CHECKPOINT = "checkpoint"
METRICS = "metrics.json"
GGUF_FILE = "adapter.gguf"  # the other formats are folders


class Run(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything `tunefleet train` can be told; `rank`, `scale`, `targets` only shape a new adapter."""

    base: str
    data: DataSource
    out: str
    plan: Plan
    backend: BackendName = "auto"
    precision: Precision = "auto"
    rank: int = 8
    scale: float = 2.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    adapter: str | None = None  # to begin with
    valid: str | None = None  # scored before and after
    form: Format = "peft"
    resume: bool = False

    @property
    def adapter_path(self) -> Path:
        """Where the adapter is written: the output folder, or a file in it."""
        return Path(self.out) / GGUF_FILE if self.form == "gguf" else Path(self.out)

    @property
    def scored_in(self) -> Precision:
        """Float32, unless another precision was asked for."""
        return "float32" if self.precision == "auto" else self.precision


def make_run(given: Mapping[str, Any]) -> Run:
    """A run from settings by their names, those of plan and data beside the others; by default one epoch.

    Raises:
        ConfigError: A setting is of another type, or cannot be used.
    """
    plan = {name: given[name] for name in Plan.__struct_fields__}
    if not (plan["steps"] or plan["epochs"] or plan["seconds"]):
        plan["epochs"] = 1
    source = {name: given[name] for name in DataSource.__struct_fields__ if name != "path"}
    settings = {name: given[name] for name in Run.__struct_fields__ if name in given}
    if isinstance(settings["targets"], str):
        settings["targets"] = [target.strip() for target in settings["targets"].split(",")]
    try:
        return msgspec.convert({**settings, "data": {"path": given["data"], **source}, "plan": plan}, Run)
    except msgspec.ValidationError as error:
        raise ConfigError(f"train: {error}") from error


async def train_alone(
    run: Run,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_stage: Callable[[str], None] = lambda _: None,
    *,
    takes_signals: bool = True,
) -> dict[str, Any]:
    """Trains an adapter and writes it with its metrics.

    Args:
        run: What to do.
        on_progress: Called as training goes on.
        on_stage: Called with what begins.
        takes_signals: SIGINT and SIGTERM end the run with a checkpoint; only in a process's main thread.

    Returns:
        The report, which is `metrics.json` without the loss of every step.

    Raises:
        StateError: The output folder holds an interrupted run that is not to be resumed.
        TunefleetError: As the worker's.
    """
    out, folder = Path(run.out), Path(run.out) / CHECKPOINT
    base = find_base(run.base)
    model = read_base(base)
    if run.form == "gguf":
        naming_of(model)  # what GGUF has no names for is told before hours of training
    on_stage(f"reading {run.data.path}")
    on_stage(f"reads {check_source(run.data)}")
    valid = _held_out(run)
    adapter = _first_adapter(run, model)
    begin = _prepare(folder, adapter, resume=run.resume)
    scores: dict[str, Any] = {}
    async with Worker(base, run.backend, run.precision) as worker:
        on_stage(f"loading {run.base}")
        loaded = await worker.load()
        if valid:
            on_stage(f"scoring {run.valid} before training")
            scores["valid_before"] = evaluation_report(await _score(worker, begin, valid, run))
        on_stage(f"training with {loaded.described} on {run.data.path}")
        task = Task(adapter=str(begin), data=run.data, plan=run.plan, folder=str(folder))
        with _stopped_by_signals(worker) if takes_signals else nullcontext():
            result = await worker.train(task, on_progress)
        if valid and result.is_complete:
            on_stage(f"scoring {run.valid} after training")
            scores["valid_after"] = evaluation_report(await _score(worker, Path(result.adapter), valid, run))
    with room_for("the adapter", out):
        save_as(
            run.form,
            load_adapter(Path(result.adapter)),
            run.adapter_path,
            model,
            about=_about(run, model),
            lineage=_lineage(run, result),
        )
    report = _report(run, loaded, adapter, result) | scores
    write_file(out / METRICS, msgspec.json.format(msgspec.json.encode({**report, "losses": result.losses})))
    if result.is_complete:
        shutil.rmtree(folder)
    return report


async def score_alone(
    worker: Worker,
    base: Path,
    adapter: LoraAdapter | Path | None,
    data: DataSource,
    *,
    seq_tokens: int,
    batch_tokens: int,
    precision: Precision = "float32",
) -> Evaluation:
    """Scores data with an adapter of any format for `base`, or with the plain base."""
    with canonical_file(adapter, base) as path:
        return await worker.score(
            path, data, seq_tokens=seq_tokens, batch_tokens=batch_tokens, precision=precision
        )


@contextmanager
def canonical_file(adapter: LoraAdapter | Path | None, base: Path) -> Iterator[Path | None]:
    """A canonical file of an adapter, in memory or of any format, while it is needed; None for none."""
    if adapter is None:
        yield None
        return
    with TemporaryDirectory(prefix="tunefleet-") as folder:
        path = Path(folder) / "adapter.safetensors"
        loaded = adapter if isinstance(adapter, LoraAdapter) else load_any(adapter, read_base(base))
        save_adapter(loaded, path)
        yield path


def trained_asking(adapter: Path) -> Asking | None:
    """How the data that an adapter was trained on asks; None is unknown.

    Its metrics.json tells, for as long as it lies beside the adapter.
    """
    folder = adapter if adapter.is_dir() else adapter.parent
    try:
        metrics = msgspec.json.decode((folder / METRICS).read_bytes(), type=_Asked)
    except (OSError, msgspec.MsgspecError):
        return None
    is_of_it = Path(metrics.adapter).name == adapter.name or adapter.is_dir()
    return metrics.asking if is_of_it else None


class _Asked(Struct):
    adapter: str
    asking: Asking | None = None


def evaluation_report(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as it is printed."""
    return {
        "loss": evaluation.loss,
        "perplexity": evaluation.perplexity,
        "accuracy": evaluation.accuracy,
        "exact_match": evaluation.exact_match,
        "num_examples": evaluation.num_examples,
        "num_labels": evaluation.num_labels,
        "num_truncated": evaluation.num_truncated,
        "precision": evaluation.precision,
    }


def _held_out(run: Run) -> DataSource | None:
    if run.valid is None:
        return None
    source = structs.replace(run.data, path=str(locate(Path(run.valid), is_held_out=True)))
    check_source(source)
    return source


def _first_adapter(run: Run, model: Base) -> LoraAdapter:
    if run.adapter:
        return load_any(Path(run.adapter), model)
    if run.rank < 1:
        raise ConfigError(f"rank is {run.rank}, expected at least 1")
    targets = match_targets(model.modules, run.targets)
    return initial_adapter(targets, rank=run.rank, scale=run.scale, seed=run.plan.seed)


def _about(run: Run, model: Base) -> About:
    """The base's name, and what the adapter that the run began with said beside its factors."""
    before = read_about(Path(run.adapter)) if run.adapter else NOTHING
    return before.of_base(model, run.base)


def _lineage(run: Run, result: Result) -> Lineage:
    facts = {"Trained": f"{result.num_steps:,} steps, {result.num_tokens:,} tokens, by `tunefleet train`"}
    if run.adapter:
        facts["Began from"] = "an adapter"
    return Lineage(facts=facts)


def _prepare(folder: Path, adapter: LoraAdapter, *, resume: bool) -> Path:
    if (folder / FILE).exists() and not resume:
        raise StateError(f"{folder}: a run was interrupted; --resume goes on with it, or remove the folder")
    path = folder / "begin.safetensors"
    try:
        with room_for("a checkpoint", folder):
            folder.mkdir(parents=True, exist_ok=True)
            save_adapter(adapter, path)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}; choose another --out") from error
    return path


async def _score(worker: Worker, adapter: Path, data: DataSource, run: Run) -> Evaluation:
    return await worker.score(
        adapter,
        data,
        seq_tokens=run.plan.seq_tokens,
        batch_tokens=run.plan.batch_tokens,
        precision=run.scored_in,
    )


@contextmanager
def _stopped_by_signals(worker: Worker) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: tasks.append(loop.create_task(worker.stop())))
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _report(run: Run, loaded: Loaded, adapter: LoraAdapter, result: Result) -> dict[str, Any]:
    return {
        "base": run.base,
        "backend": loaded.backend,
        "backend_why": loaded.backend_why,
        "precision": result.precision,
        "precision_why": _precision_why(loaded, result),
        "adapter": str(run.adapter_path),
        "format": run.form,
        "rank": adapter.max_rank,
        "num_modules": len(adapter),
        "num_parameters": adapter.num_parameters,
        "num_steps": result.num_steps,
        "num_examples": result.num_examples,
        "num_tokens": result.num_tokens,
        "num_truncated": result.num_truncated,
        "seconds": result.seconds,
        "tokens_per_s": result.num_tokens / max(result.seconds, 1e-9),
        "loss_before": result.loss_before,
        "loss_after": result.loss_after,
        "micro_batch_tokens": result.micro_batch_tokens,
        "is_complete": result.is_complete,
        "asking": result.asking,
    }


def _precision_why(loaded: Loaded, result: Result) -> str:
    if result.precision != loaded.precision:
        return f"the run that was resumed began in {result.precision}"
    return loaded.precision_why
