"""The folder that a run writes to: its checkpoint, and then its adapter with metrics.json."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from converters.adapter import LoraAdapter
from converters.bases.contract import Base
from converters.formats.about import NOTHING, About
from converters.formats.canonical import load_adapter, save_adapter
from converters.formats.card import Lineage
from converters.formats.load import read_about
from converters.formats.save import save_as
from edge.errors import ConfigError, StateError
from edge.storage.disk import room_for, write_file
from edge.training.checkpoint import FILE
from edge.training.data.forms import Asking
from edge.training.local_run.run import GGUF_FILE, Run
from edge.training.requests import Result

CHECKPOINT = "checkpoint"
METRICS = "metrics.json"
OUTPUTS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapters.safetensors",
    GGUF_FILE,
    METRICS,
)


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
        ConfigError: It cannot be written.
        DiskFull: There is no room.
    """
    folder = Path(run.out) / CHECKPOINT
    if run.overwrite and not run.resume:
        shutil.rmtree(folder, ignore_errors=True)
    path = folder / "begin.safetensors"
    try:
        with room_for("a checkpoint", folder):
            folder.mkdir(parents=True, exist_ok=True)
            save_adapter(adapter, path)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}; choose another --out") from error
    return path


def save_result(run: Run, model: Base, result: Result) -> None:
    """Writes the adapter in the run's format.

    Raises:
        UnsupportedAdapter: The format cannot hold it.
        DiskFull: There is no room.
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


def _about(run: Run, model: Base) -> About:
    """Tells the base's name, and what the adapter that the run began with said beside its factors."""
    before = read_about(Path(run.adapter)) if run.adapter else NOTHING
    return before.of_base(model, run.base)


def _lineage(run: Run, result: Result) -> Lineage:
    facts = {"Trained": f"{result.num_steps:,} steps, {result.num_tokens:,} tokens, by `tunefleet train`"}
    if run.adapter:
        facts["Began from"] = "an adapter"
    return Lineage(facts=facts)
