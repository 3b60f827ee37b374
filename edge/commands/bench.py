"""The command `tunefleet bench`: what this machine is worth as a device.

A simulated fleet takes the speeds of its devices from such traces.
"""

import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from converters.command import AsJson, Command, Program, examples
from edge.choices import BATCH_TOKENS, RANK, SCALE, SEQ_TOKENS, TARGETS
from edge.commands.options import (
    MACHINE,
    BackendOption,
    BaseOption,
    BatchTokens,
    CompletionColumn,
    DataOption,
    PromptColumn,
    SeqTokens,
)
from edge.commands.report import print_report

if TYPE_CHECKING:
    from converters.bases.contract import Base
    from edge.training.data.source import DataSource
    from edge.training.plan import Plan
    from edge.training.requests import Progress
    from edge.training.worker.supervisor import Worker

WINDOW_S = 1.0

DEVICE = examples(
    "tunefleet bench device --base Qwen/Qwen3-0.6B --data chats.jsonl",
    "tunefleet bench device --base model.gguf --data chats.jsonl --seconds 60",
)

app = typer.Typer(name="bench", cls=Program, help="Measures this machine.", no_args_is_help=True)


@app.command(cls=Command, epilog=DEVICE)
def device(
    base: BaseOption,
    data: DataOption,
    prompt_column: PromptColumn = None,
    completion_column: CompletionColumn = None,
    seconds: Annotated[
        float, typer.Option(metavar="S", min=1, rich_help_panel=MACHINE, help="How long to train.")
    ] = 30.0,
    backend: BackendOption = "auto",
    seq_tokens: SeqTokens = SEQ_TOKENS,
    batch_tokens: BatchTokens = BATCH_TOKENS,
    as_json: AsJson = False,
) -> None:
    """Trains LoRA of rank 8 on this machine and prints how many tokens a second it did, second by second."""
    import asyncio

    from converters.bases.read import find_base, read_base
    from edge.commands.display import Display
    from edge.training.data.source import DataSource
    from edge.training.plan import Plan
    from edge.training.worker.supervisor import Worker

    plan = Plan(seconds=seconds, seq_tokens=seq_tokens, batch_tokens=batch_tokens, checkpoint_every_s=seconds)
    source = DataSource(path=data, prompt_column=prompt_column, completion_column=completion_column)

    async def measure() -> dict[str, Any]:
        found = find_base(base)
        async with Worker(found, backend) as worker:
            report = await _measure(worker, read_base(found), source, plan, display)
            return {"device": _describe(), "model": found.name, **report}

    with Display(seconds) as display:
        report = asyncio.run(measure())
    if not as_json:
        report["tokens_per_s"] = _quantiles(report["tokens_per_s"])
    print_report(report, as_json)


def window_speeds(reports: Iterable["Progress"]) -> Iterator[float]:
    """Yields tokens a second, window after window, each of a second or of one step that takes longer.

    The first step is left out: in it libraries warm up.
    """
    began, counted = None, 0.0
    for report in reports:
        tokens = report.tokens_per_s * report.seconds
        if began is None:
            began, counted = report.seconds, tokens
        elif report.seconds - began >= WINDOW_S:
            yield (tokens - counted) / (report.seconds - began)
            began, counted = report.seconds, tokens


async def _measure(
    worker: "Worker", base: "Base", source: "DataSource", plan: "Plan", display: Any
) -> dict[str, Any]:
    from converters.adapter import initial_adapter
    from converters.bases.targets import match_targets
    from converters.formats.canonical import save_adapter
    from edge.errors import ConfigError
    from edge.training.requests import Training

    adapter = initial_adapter(match_targets(base.modules, TARGETS), rank=RANK, scale=SCALE, seed=0)
    display.stage("loading the base model")
    loaded = await worker.load()
    display.stage(f"training with {loaded.described}")
    reports: list[Progress] = []
    with TemporaryDirectory(prefix="tunefleet-") as folder:
        begin = Path(folder) / "begin.safetensors"
        save_adapter(adapter, begin)
        task = Training(adapter=str(begin), data=source, plan=plan, folder=folder)

        def note(progress: "Progress") -> None:
            reports.append(progress)
            display.step(progress)

        result = await worker.train(task, note)
    speeds = [round(speed, 1) for speed in window_speeds(reports)]
    if not speeds:
        raise ConfigError(
            f"bench: {result.num_steps} steps in {result.seconds:.1f} s are too few for a trace; "
            f"give more than --seconds {plan.seconds:g}"
        )
    return {
        "backend": loaded.backend,
        "precision": loaded.precision,
        "num_parameters": loaded.num_parameters,
        "memory_bytes": max(report.memory_bytes for report in reports),
        "tokens_per_s": speeds,
    }


def _quantiles(speeds: list[float]) -> dict[str, float]:
    import numpy as np

    names = {"slowest": 0.0, "slow tenth": 0.1, "median": 0.5, "fast tenth": 0.9, "fastest": 1.0}
    return {name: float(np.quantile(speeds, share)) for name, share in names.items()}


def _describe() -> str:
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, {gigabytes:.0f} GB"
