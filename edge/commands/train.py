"""The command `tunefleet train`: its options, a record for each group of its help, and what it shows."""

import asyncio
from functools import partial
from typing import Annotated, NamedTuple

import typer
from typer import Context, Option

from converters.choices import Format, Trains
from converters.command import OUTPUT, AsJson, examples
from edge.choices import (
    BATCH_TOKENS,
    CHECKPOINT_EVERY_S,
    CLIP_NORM,
    LR,
    RANK,
    SCALE,
    SEQ_TOKENS,
    TARGETS,
    Schedule,
)
from edge.commands.options import (
    ADAPTER,
    DATA,
    MACHINE,
    BackendOption,
    BaseOption,
    BatchTokens,
    ColumnOptions,
    DataOption,
    PrecisionOption,
    SeqTokens,
)
from edge.commands.report import print_report

EXAMPLES = examples(
    "tunefleet train --base Qwen/Qwen3-0.6B --data chats.jsonl --out adapter",
    "tunefleet train --base model.gguf --data chats.jsonl --valid held-out.jsonl \\",
    "  --rank 16 --targets all-linear --epochs 3 --out adapter",
)
LENGTH, OPTIMIZER = "How long to train", "Optimizer"
SHAPES = ("rank", "scale", "targets", "num_layers")  # of a new adapter
_data, _adapter = partial(Option, rich_help_panel=DATA), partial(Option, rich_help_panel=ADAPTER)
_length, _optimizer = partial(Option, rich_help_panel=LENGTH), partial(Option, rich_help_panel=OPTIMIZER)
_machine = partial(Option, rich_help_panel=MACHINE)


class HeldOutOptions(NamedTuple):
    """What is scored and not trained on."""

    valid: Annotated[
        str | None,
        _data(
            metavar="FILE",
            help="Examples to score before, while and after training; none of them is trained on.",
        ),
    ] = None
    valid_every: Annotated[
        int,
        _data(
            "--valid-every",
            "--steps-per-eval",
            metavar="N",
            min=0,
            help="Score --valid every N steps; 0 is about ten times in all.",
        ),
    ] = 0


class OutputOptions(NamedTuple):
    """Where the adapter goes."""

    out: Annotated[
        str,
        _adapter("--out", "--adapter-path", metavar="FOLDER", help="Where the adapter and metrics.json go."),
    ]
    resume: Annotated[bool, _adapter("--resume", help="Go on with the interrupted run in --out.")] = False
    overwrite: Annotated[
        bool, _adapter("--overwrite", help="Replace the adapter, or the interrupted run, that --out holds.")
    ] = False
    form: Annotated[
        Format,
        _adapter(
            "--format",
            metavar="NAME",
            help="What to write: peft, mlx, or gguf, which is adapter.gguf in --out.",
        ),
    ] = "peft"


class AdapterOptions(NamedTuple):
    """What is trained: another adapter, or a new one of this shape."""

    adapter: Annotated[
        str | None,
        _adapter(
            "--adapter",
            "--resume-adapter-file",
            metavar="PATH",
            help="Train this adapter on instead of a new one; its rank, scale and targets stay.",
        ),
    ] = None
    rank: Annotated[int, _adapter(metavar="N", min=1, help="The rank of a new adapter.")] = RANK
    scale: Annotated[
        float,
        _adapter(
            metavar="X", help="What a new adapter's product is multiplied by: lora_alpha / rank in PEFT."
        ),
    ] = SCALE
    targets: Annotated[
        str,
        _adapter(
            metavar="NAMES",
            help="The layers that a new adapter is put on: endings of their names, with commas, or "
            "all-linear, which is every layer but the head.",
        ),
    ] = ",".join(TARGETS)
    num_layers: Annotated[
        int,
        _adapter(metavar="N", min=-1, help="Put a new adapter on the last N blocks only; -1 is all of them."),
    ] = -1
    trains: Annotated[
        Trains, _adapter(metavar="NAME", help="The factors that are trained: both, a or b.")
    ] = "both"
    train_rank: Annotated[
        int,
        _adapter(metavar="N", min=0, help="Train the first N rows of a and columns of b only; 0 trains all."),
    ] = 0


class LengthOptions(NamedTuple):
    """The bound of training."""

    steps: Annotated[
        int, _length("--steps", "--iters", metavar="N", min=0, help="Train for N optimizer steps.")
    ] = 0
    epochs: Annotated[
        int, _length(metavar="N", min=0, help="Or go N times over the data; once if neither is given.")
    ] = 0
    seconds: Annotated[float, _length(metavar="S", min=0, help="Or train for S seconds.")] = 0.0


class OptimizerOptions(NamedTuple):
    """How steps are taken."""

    lr: Annotated[
        float,
        _optimizer("--lr", "--learning-rate", metavar="X", min=0, help="AdamW's highest learning rate."),
    ] = LR
    schedule: Annotated[
        Schedule,
        _optimizer(
            metavar="NAME",
            help="How the rate goes on after the warm-up: constant, or falling to 0, linear or cosine.",
        ),
    ] = "constant"
    warmup_steps: Annotated[int, _optimizer(metavar="N", min=0, help="Steps in which the rate rises.")] = 0
    weight_decay: Annotated[float, _optimizer(metavar="X", min=0, help="AdamW's weight decay.")] = 0.0
    clip_norm: Annotated[
        float, _optimizer(metavar="X", min=0, help="The largest norm of a step's gradient; 0 sets no bound.")
    ] = CLIP_NORM
    pull: Annotated[
        float,
        _optimizer(
            metavar="X",
            min=0,
            help="How strongly hidden states are held to those before training (AlignFed); 0 is off.",
        ),
    ] = 0.0
    seed: Annotated[int, _optimizer(metavar="N", min=0, help="Of a new adapter and of the data's order.")] = 0


class MachineOptions(NamedTuple):
    """What computes, and how much at a time."""

    backend: BackendOption = "auto"
    precision: PrecisionOption = "auto"
    seq_tokens: SeqTokens = SEQ_TOKENS
    batch_tokens: BatchTokens = BATCH_TOKENS
    micro_batch_tokens: Annotated[
        int,
        _machine(
            metavar="N",
            min=0,
            help="Tokens computed at a time, which decides the memory; 0 takes the whole step.",
        ),
    ] = 0
    checkpoint_every_s: Annotated[
        float, _machine(metavar="S", min=0, help="Seconds between two checkpoints.")
    ] = CHECKPOINT_EVERY_S


def train(
    context: Context,
    base: BaseOption,
    data: DataOption,
    held_out: HeldOutOptions,
    columns: ColumnOptions,
    output: OutputOptions,
    adapter: AdapterOptions,
    length: LengthOptions,
    optimizer: OptimizerOptions,
    machine: MachineOptions,
    as_json: AsJson = False,
    print_config: Annotated[
        bool,
        Option("--print-config", rich_help_panel=OUTPUT, help="Print all settings as TOML and end."),
    ] = False,
) -> None:
    """Fine-tunes an adapter on this machine, without a fleet."""
    from edge.commands.display import Display
    from edge.settings import write_toml
    from edge.training.local_run.run import make_run
    from edge.training.local_run.train import train_locally

    _check_new(context)
    given = held_out._asdict() | columns._asdict() | output._asdict() | adapter._asdict()
    given |= length._asdict() | optimizer._asdict() | machine._asdict()
    run = make_run({"base": base, "data": data, **given})
    if print_config:
        typer.echo(write_toml(run), nl=False)
        return
    with Display(run.plan.seconds) as display:
        report = asyncio.run(train_locally(run, display.step, display.stage, display.validated))
    print_report(report, as_json)
    if not report["is_complete"]:
        typer.echo(f"stopped at step {report['num_steps']}; --resume goes on", err=True)
        raise typer.Exit(1)


def _check_new(context: Context) -> None:
    """Checks that what shapes a new adapter is not given beside another one.

    Raises:
        ConfigError: It is.
    """
    if context.params["adapter"] is None:
        return
    sources = {name: context.get_parameter_source(name) for name in SHAPES}
    given = [
        f"--{name.replace('_', '-')}"
        for name, source in sources.items()
        if source and source.name == "COMMANDLINE"
    ]
    if given:
        from edge.errors import ConfigError

        raise ConfigError(f"--adapter keeps the adapter's own shape; leave out {' and '.join(given)}")
