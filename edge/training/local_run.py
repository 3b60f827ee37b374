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
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, structs

from converters.adapter import LoraAdapter, check_rank, initial_adapter
from converters.bases.contract import Base
from converters.bases.gguf_naming import naming_of
from converters.bases.hub import find_base
from converters.bases.read import read_base
from converters.bases.targets import ALL_LAYERS, match_targets
from converters.choices import Format
from converters.formats.about import NOTHING, About
from converters.formats.canonical import load_adapter, save_adapter
from converters.formats.card import Lineage
from converters.formats.load import load_any, read_about
from converters.formats.save import save_as
from edge.choices import RANK, SCALE, TARGETS, BackendName, Precision
from edge.errors import ConfigError, StateError
from edge.storage.disk import room_for, write_file
from edge.training.checkpoint import FILE
from edge.training.data.check import check_source
from edge.training.data.forms import Asking
from edge.training.data.readers.folders import locate
from edge.training.data.source import DataSource
from edge.training.plan import Plan
from edge.training.requests import Evaluation, Loaded, Progress, Result, Training, Validation
from edge.training.worker.supervisor import Worker

CHECKPOINT = "checkpoint"
METRICS = "metrics.json"
OUTPUTS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapters.safetensors",
    "adapter.gguf",
    METRICS,
)
GGUF_FILE = "adapter.gguf"  # the other formats are folders
MOST_SCALE = 1e6  # far more than anybody wants, and no infinity


class Run(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything `tunefleet train` can be told; `rank` to `num_layers` only shape a new adapter."""

    base: str
    data: DataSource
    out: str
    plan: Plan
    backend: BackendName = "auto"
    precision: Precision = "auto"
    rank: Annotated[int, Meta(ge=1)] = RANK
    scale: Annotated[float, Meta(gt=0, le=MOST_SCALE)] = SCALE
    targets: tuple[str, ...] = TARGETS
    num_layers: Annotated[int, Meta(ge=-1)] = ALL_LAYERS  # the last so many blocks
    adapter: str | None = None  # to begin with
    valid: str | None = None  # scored before, while and after it trains
    valid_every: Annotated[int, Meta(ge=0)] = 0  # steps; 0 is about ten times in all
    form: Format = "peft"
    resume: bool = False
    overwrite: bool = False  # what `out` holds

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
    on_validation: Callable[[Validation], None] = lambda _: None,
    *,
    takes_signals: bool = True,
) -> dict[str, Any]:
    """Trains an adapter and writes it with its metrics.

    Args:
        run: What to do.
        on_progress: Called as training goes on.
        on_stage: Called with what begins.
        on_validation: Called with each score of `run.valid`.
        takes_signals: SIGINT and SIGTERM end the run with a checkpoint; only in a process's main thread.

    Returns:
        The report, which is `metrics.json` without the loss of every step and the scores while it trained.

    Raises:
        StateError: The output folder holds an adapter, or an interrupted run that is not to be resumed.
        TunefleetError: As the worker's.
    """
    out, folder = Path(run.out), Path(run.out) / CHECKPOINT
    check_output(run)
    base = find_base(run.base)
    model = read_base(base)
    if run.form == "gguf":
        naming_of(model)  # what GGUF has no names for is told before hours of training
    on_stage(f"reading {run.data.path}")
    on_stage(f"reads {check_source(run.data)}")
    valid = _held_out(run)
    adapter = _first_adapter(run, model)
    begin = _prepare(folder, adapter, overwrite=run.overwrite, resume=run.resume)
    async with Worker(base, run.backend, run.precision) as worker:
        on_stage(f"loading {run.base}")
        loaded = await worker.load()
        on_stage(f"training with {loaded.described} on {run.data.path}")
        task = Training(
            adapter=str(begin),
            data=run.data,
            plan=run.plan,
            folder=str(folder),
            valid=valid,
            valid_every=run.valid_every,
        )
        with _stopped_by_signals(worker) if takes_signals else nullcontext():
            result = await worker.train(task, on_progress, on_validation)
        scores = await _scores(worker, begin, valid, run, result, on_stage) if valid else {}
    if run.overwrite:  # what is there may be of another format
        for name in OUTPUTS:
            (out / name).unlink(missing_ok=True)
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
    more = {"losses": result.losses, "validations": result.validations}
    write_file(out / METRICS, msgspec.json.format(msgspec.json.encode(report | more)))
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
    targets = match_targets(model.modules, run.targets, run.num_layers)
    check_rank(targets, run.rank)
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


def check_output(run: Run) -> None:
    """Checks that the run may write where it is to.

    Raises:
        StateError: There is an interrupted run, or the adapter of a finished one.
    """
    out = Path(run.out)
    is_interrupted = (out / CHECKPOINT / FILE).exists()
    if run.overwrite or (run.resume and is_interrupted):
        return
    if is_interrupted:
        raise StateError(f"{out}: a run was interrupted; --resume goes on with it, --overwrite begins anew")
    found = [name for name in OUTPUTS if (out / name).is_file()]
    if found:
        nothing = "no interrupted run, but " if run.resume else ""
        raise StateError(
            f"{out}: holds {nothing}an adapter already ({', '.join(found)}); give another --out, or "
            "--overwrite"
        )


def _prepare(folder: Path, adapter: LoraAdapter, *, overwrite: bool, resume: bool) -> Path:
    if overwrite and not resume:
        shutil.rmtree(folder, ignore_errors=True)
    path = folder / "begin.safetensors"
    try:
        with room_for("a checkpoint", folder):
            folder.mkdir(parents=True, exist_ok=True)
            save_adapter(adapter, path)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}; choose another --out") from error
    return path


async def _scores(
    worker: Worker,
    begin: Path,
    valid: DataSource,
    run: Run,
    result: Result,
    on_stage: Callable[[str], None],
) -> dict[str, Any]:
    """How well held-out data is predicted before and after, and after which step best.

    The scores while training are in its own precision; before and after are scored again, where another is
    asked for.
    """
    told: dict[str, Any] = {}
    ends = {"valid_before": (begin, 0), "valid_after": (Path(result.adapter), result.num_steps)}
    for name, (adapter, step) in ends.items():
        found = next((one.evaluation for one in result.validations if one.step == step), None)
        if found and found.precision == run.scored_in:
            told[name] = evaluation_report(found)
        elif result.is_complete:
            on_stage(f"scoring {run.valid} in {run.scored_in}")
            told[name] = evaluation_report(await _score(worker, adapter, valid, run))
    best = min(result.validations, key=lambda one: one.evaluation.loss, default=None)
    return told | ({"best_step": best.step, "best_valid_loss": best.evaluation.loss} if best else {})


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
