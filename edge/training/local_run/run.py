"""What a run on this machine can be told."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from converters.bases.targets import ALL_LAYERS
from converters.choices import Format
from edge.choices import RANK, SCALE, TARGETS, BackendName, Precision
from edge.errors import ConfigError
from edge.training.data.source import DataSource
from edge.training.plan import Plan

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
