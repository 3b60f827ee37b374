"""Commands of a device; heavy imports happen inside the command that needs them."""

import asyncio
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from converters.command import ALONE, FLEET, OUTPUT, Command, examples
from edge.commands import bench, data
from edge.commands.generate import EXAMPLES as GENERATE
from edge.commands.generate import generate
from edge.commands.join import EXAMPLES as JOIN
from edge.commands.join import JoinCommand, join
from edge.commands.options import (
    ADAPTER,
    DATA,
    MACHINE,
    AdapterOption,
    AsJson,
    Backend,
    BackendOption,
    BaseOption,
    BatchTokens,
    CompletionColumn,
    DataOption,
    Form,
    Precision,
    PrecisionOption,
    PromptColumn,
    Schedule,
    SeqTokens,
    Trained,
    TrainOnPrompt,
)
from edge.commands.report import print_report

if TYPE_CHECKING:
    from msgspec import Struct

    from edge.training.local_run import Run

TRAIN = examples(
    "tunefleet train --base Qwen/Qwen3-0.6B --data chats.jsonl --out adapter",
    "tunefleet train --base model.gguf --data chats.jsonl --valid held-out.jsonl \\",
    "  --rank 16 --targets all-linear --epochs 3 --out adapter",
)
EVALUATE = examples(
    "tunefleet eval --base Qwen/Qwen3-0.6B --data held-out.jsonl",
    "tunefleet eval --base model.gguf --adapter adapter --data held-out.jsonl",
)
LENGTH, OPTIMIZER = "How long to train", "Optimizer"
SHAPES = ("rank", "scale", "targets", "num_layers")  # of a new adapter

app = typer.Typer()
app.command(cls=JoinCommand, epilog=JOIN, rich_help_panel=FLEET)(join)
app.command(cls=Command, epilog=GENERATE, rich_help_panel=ALONE)(generate)
app.add_typer(data.app, rich_help_panel=ALONE)
app.add_typer(bench.app, rich_help_panel=ALONE)


@app.command(cls=Command, epilog=TRAIN, rich_help_panel=ALONE)
def train(
    context: typer.Context,
    base: BaseOption,
    data: DataOption,
    out: Annotated[
        Path,
        Option(
            "--out",
            "--adapter-path",
            metavar="FOLDER",
            rich_help_panel=ADAPTER,
            help="Where the adapter and metrics.json go.",
        ),
    ],
    valid: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            rich_help_panel=DATA,
            help="Examples to score before, while and after training; none of them is trained on.",
        ),
    ] = None,
    valid_every: Annotated[
        int,
        Option(
            "--valid-every",
            "--steps-per-eval",
            metavar="N",
            min=0,
            rich_help_panel=DATA,
            help="Score --valid every N steps; 0 is about ten times in all.",
        ),
    ] = 0,
    prompt_column: PromptColumn = None,
    completion_column: CompletionColumn = None,
    train_on_prompt: TrainOnPrompt = False,
    resume: Annotated[
        bool,
        Option("--resume", rich_help_panel=ADAPTER, help="Go on with the interrupted run in --out."),
    ] = False,
    overwrite: Annotated[
        bool,
        Option(
            "--overwrite",
            rich_help_panel=ADAPTER,
            help="Replace the adapter, or the interrupted run, that --out holds.",
        ),
    ] = False,
    form: Annotated[
        Form,
        Option(
            "--format",
            metavar="NAME",
            rich_help_panel=ADAPTER,
            help="What to write: peft, mlx, or gguf, which is adapter.gguf in --out.",
        ),
    ] = Form.peft,
    adapter: Annotated[
        Path | None,
        Option(
            "--adapter",
            "--resume-adapter-file",
            metavar="PATH",
            rich_help_panel=ADAPTER,
            help="Train this adapter on instead of a new one; its rank, scale and targets stay.",
        ),
    ] = None,
    rank: Annotated[
        int, Option(metavar="N", min=1, rich_help_panel=ADAPTER, help="The rank of a new adapter.")
    ] = 8,
    scale: Annotated[
        float,
        Option(
            metavar="X",
            rich_help_panel=ADAPTER,
            help="What a new adapter's product is multiplied by: lora_alpha / rank in PEFT.",
        ),
    ] = 2.0,
    targets: Annotated[
        str,
        Option(
            metavar="NAMES",
            rich_help_panel=ADAPTER,
            help="The layers that a new adapter is put on: endings of their names, with commas, or "
            "all-linear, which is every layer but the head.",
        ),
    ] = "q_proj,v_proj",
    num_layers: Annotated[
        int,
        Option(
            metavar="N",
            min=-1,
            rich_help_panel=ADAPTER,
            help="Put a new adapter on the last N blocks only; -1 is all of them.",
        ),
    ] = -1,
    trains: Annotated[
        Trained,
        Option(metavar="NAME", rich_help_panel=ADAPTER, help="The factors that are trained: both, a or b."),
    ] = Trained.both,
    train_rank: Annotated[
        int,
        Option(
            metavar="N",
            min=0,
            rich_help_panel=ADAPTER,
            help="Train the first N rows of a and columns of b only; 0 trains all.",
        ),
    ] = 0,
    steps: Annotated[
        int,
        Option(
            "--steps",
            "--iters",
            metavar="N",
            min=0,
            rich_help_panel=LENGTH,
            help="Train for N optimizer steps.",
        ),
    ] = 0,
    epochs: Annotated[
        int,
        Option(
            metavar="N",
            min=0,
            rich_help_panel=LENGTH,
            help="Or go N times over the data; once if neither is given.",
        ),
    ] = 0,
    seconds: Annotated[
        float, Option(metavar="S", min=0, rich_help_panel=LENGTH, help="Or train for S seconds.")
    ] = 0.0,
    lr: Annotated[
        float,
        Option(
            "--lr",
            "--learning-rate",
            metavar="X",
            min=0,
            rich_help_panel=OPTIMIZER,
            help="AdamW's highest learning rate.",
        ),
    ] = 1e-3,
    schedule: Annotated[
        Schedule,
        Option(
            metavar="NAME",
            rich_help_panel=OPTIMIZER,
            help="How the rate goes on after the warm-up: constant, or falling to 0, linear or cosine.",
        ),
    ] = Schedule.constant,
    warmup_steps: Annotated[
        int, Option(metavar="N", min=0, rich_help_panel=OPTIMIZER, help="Steps in which the rate rises.")
    ] = 0,
    weight_decay: Annotated[
        float, Option(metavar="X", min=0, rich_help_panel=OPTIMIZER, help="AdamW's weight decay.")
    ] = 0.0,
    clip_norm: Annotated[
        float,
        Option(
            metavar="X",
            min=0,
            rich_help_panel=OPTIMIZER,
            help="The largest norm of a step's gradient; 0 sets no bound.",
        ),
    ] = 1.0,
    pull: Annotated[
        float,
        Option(
            metavar="X",
            min=0,
            rich_help_panel=OPTIMIZER,
            help="How strongly hidden states are held to those before training (AlignFed); 0 is off.",
        ),
    ] = 0.0,
    seed: Annotated[
        int,
        Option(
            metavar="N",
            min=0,
            rich_help_panel=OPTIMIZER,
            help="Of a new adapter and of the data's order.",
        ),
    ] = 0,
    backend: BackendOption = Backend.auto,
    precision: PrecisionOption = Precision.auto,
    seq_tokens: SeqTokens = 512,
    batch_tokens: BatchTokens = 2048,
    micro_batch_tokens: Annotated[
        int,
        Option(
            metavar="N",
            min=0,
            rich_help_panel=MACHINE,
            help="Tokens computed at a time, which decides the memory; 0 takes the whole step.",
        ),
    ] = 0,
    checkpoint_every_s: Annotated[
        float,
        Option(metavar="S", min=0, rich_help_panel=MACHINE, help="Seconds between two checkpoints."),
    ] = 60.0,
    as_json: AsJson = False,
    print_config: Annotated[
        bool,
        Option("--print-config", rich_help_panel=OUTPUT, help="Print all settings as TOML and end."),
    ] = False,
) -> None:
    """Fine-tunes an adapter on this machine, without a fleet."""
    from edge.commands.display import Display
    from edge.training.local_run import train_alone

    _check_new(context)
    run = _run(context.params)
    if print_config:
        typer.echo(_toml(run), nl=False)
        return
    with Display(run.plan.seconds) as display:
        report = asyncio.run(train_alone(run, display.step, display.stage, display.validated))
    print_report(report, as_json)
    if not report["is_complete"]:
        typer.echo(f"stopped at step {report['num_steps']}; --resume goes on", err=True)
        raise typer.Exit(1)


@app.command("eval", cls=Command, epilog=EVALUATE, rich_help_panel=ALONE)
def evaluate(
    base: BaseOption,
    data: DataOption,
    adapter: AdapterOption = None,
    prompt_column: PromptColumn = None,
    completion_column: CompletionColumn = None,
    train_on_prompt: TrainOnPrompt = False,
    backend: BackendOption = Backend.auto,
    precision: PrecisionOption = Precision.float32,
    seq_tokens: SeqTokens = 512,
    batch_tokens: BatchTokens = 2048,
    as_json: AsJson = False,
) -> None:
    """Scores a base model on data, with an adapter or without: loss, perplexity, accuracy, exact match."""
    from converters.bases.hub import find_base
    from edge.commands.display import Display
    from edge.training.data.check import check_source
    from edge.training.data.readers.folders import locate
    from edge.training.data.source import DataSource
    from edge.training.local_run import evaluation_report, score_alone
    from edge.training.worker.supervisor import Worker

    source = DataSource(
        path=str(locate(data, is_held_out=True)),
        prompt_column=prompt_column,
        completion_column=completion_column,
        train_on_prompt=train_on_prompt,
    )

    async def score() -> dict[str, Any]:
        found = find_base(base)
        async with Worker(found, backend.value, precision.value) as worker:
            loaded = await worker.load()
            display.stage(f"scoring {source.path} with {loaded.described}")
            evaluation = await score_alone(
                worker,
                found,
                adapter,
                source,
                seq_tokens=seq_tokens,
                batch_tokens=batch_tokens,
                precision=precision.value,
            )
            why = {"backend": loaded.backend, "backend_why": loaded.backend_why}
            return {**why, **evaluation_report(evaluation)}

    with Display() as display:
        display.stage(f"reading {source.path}")
        display.stage(f"reads {check_source(source)}")
        display.stage(f"loading {base}")
        report = asyncio.run(score())
    print_report(report, as_json)


def _check_new(context: typer.Context) -> None:
    """Checks that what shapes a new adapter is not given beside another one.

    Raises:
        ConfigError: It is.
    """
    if context.params["adapter"] is None:
        return
    sources = {name: context.get_parameter_source(name) for name in SHAPES}
    given = [
        f"--{name.replace('_', '-')}" for name, source in sources.items() if source and _is_given(source)
    ]
    if given:
        from edge.errors import ConfigError

        raise ConfigError(f"--adapter keeps the adapter's own shape; leave out {' and '.join(given)}")


def _is_given(source: Any) -> bool:
    return str(source.name) == "COMMANDLINE"


def _run(params: Mapping[str, Any]) -> "Run":
    from edge.training.local_run import make_run

    return make_run(
        {name: str(value) if isinstance(value, Path | StrEnum) else value for name, value in params.items()}
    )


def _toml(record: "Struct") -> str:
    import msgspec
    import tomli_w

    def without_none(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: without_none(entry) for name, entry in value.items() if entry is not None}

    return tomli_w.dumps(without_none(msgspec.to_builtins(record)))
