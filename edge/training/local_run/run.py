"""A run on this machine: what it is told, and the folder that it writes its checkpoint and adapter to."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from converters.adapter import LoraAdapter
from converters.bases.contract import Base
from converters.bases.targets import ALL_LAYERS
from converters.choices import Format
from converters.files.content import is_folder, read_content
from converters.files.text import decode_record
from converters.formats.about import NOTHING, About
from converters.formats.canonical import load_adapter, save_adapter
from converters.formats.card import Lineage
from converters.formats.load import read_about
from converters.formats.save import save_as
from edge.choices import RANK, SCALE, TARGETS, BackendName, Precision
from edge.errors import ConfigError, StateError
from edge.storage.disk import room_for, write_file
from edge.training.checkpoint import FILE
from edge.training.data.forms import Asking
from edge.training.data.source import DataSource
from edge.training.plan import Plan
from edge.training.requests import Result

GGUF_FILE = "adapter.gguf"  # the other formats are folders
CHECKPOINT = "checkpoint"
METRICS = "metrics.json"
OUTPUTS = ("adapter_config.json", "adapter_model.safetensors", "adapters.safetensors", GGUF_FILE, METRICS)
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
        """Tells where the adapter is written: the output folder, or a file in it."""
        return Path(self.out) / GGUF_FILE if self.form == "gguf" else Path(self.out)

    @property
    def scored_in(self) -> Precision:
        """Gives the precision of scores: float32, unless another one was asked for."""
        return "float32" if self.precision == "auto" else self.precision


def make_run(given: Mapping[str, Any]) -> Run:
    """Builds a run from settings by their names, those of plan and data among them; by default one epoch.

    Raises:
        ConfigError: A setting is of another type, or cannot be used.
    """
    given = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    plan = {name: given[name] for name in Plan.__struct_fields__ if name in given}
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


def prepare_folder(run: Run, adapter: LoraAdapter) -> Path:
    """Makes the folder of a run's checkpoints, and writes there what training begins with.

    Raises:
        ConfigError: It cannot be made.
        DiskRefused: There is no room, or nothing can be written in it.
    """
    folder = Path(run.out) / CHECKPOINT
    if run.overwrite and not run.resume:
        shutil.rmtree(folder, ignore_errors=True)
    path = folder / "begin.safetensors"
    with room_for("a checkpoint", folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            told = f"{folder}: cannot be written: {error.strerror}; choose another --out"
            raise ConfigError(told) from error
        save_adapter(adapter, path)
    return path


def save_result(run: Run, model: Base, result: Result) -> None:
    """Writes the adapter in the run's format.

    Raises:
        UnsupportedAdapter: The format cannot hold it.
        DiskRefused: There is no room.
    """
    out = Path(run.out)
    if run.overwrite:  # what is there may be of another format
        for name in OUTPUTS:
            (out / name).unlink(missing_ok=True)
    adapter, about = load_adapter(Path(result.adapter)), _about(run, model)
    with room_for("the adapter", out):
        save_as(run.form, adapter, run.adapter_path, model, about=about, lineage=_lineage(run, result))


def save_metrics(run: Run, metrics: Mapping[str, Any], result: Result) -> None:
    """Writes metrics.json; with it a run that is complete needs its checkpoint no more."""
    write_file(Path(run.out) / METRICS, msgspec.json.format(msgspec.json.encode(metrics)))
    if result.is_complete:
        shutil.rmtree(Path(run.out) / CHECKPOINT)


def trained_asking(adapter: Path) -> Asking | None:
    """Tells how the data that an adapter was trained on asks; None is unknown.

    Its metrics.json tells, for as long as it lies beside the adapter.
    """
    folder = adapter if is_folder(adapter) else adapter.parent
    try:
        content = read_content(folder / METRICS, StateError)
        metrics = decode_record(content, _Asked, StateError)
    except StateError:
        return None
    is_of_it = Path(metrics.adapter).name == adapter.name or adapter.is_dir()
    return metrics.asking if is_of_it else None


class _Asked(Struct):
    adapter: str
    asking: Asking | None = None


def _about(run: Run, model: Base) -> About:
    """Tells the base's name, and what the adapter that the run began with said beside its factors."""
    before = read_about(Path(run.adapter)) if run.adapter else NOTHING
    return before.of_base(model, run.base)


def _lineage(run: Run, result: Result) -> Lineage:
    facts = {"Trained": f"{result.num_steps:,} steps, {result.num_tokens:,} tokens, by `tunefleet train`"}
    if run.adapter:
        facts["Began from"] = "an adapter"
    return Lineage(facts=facts)
