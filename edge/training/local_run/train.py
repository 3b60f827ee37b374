"""Trains an adapter on this machine: what `tunefleet train` does."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from msgspec import structs

from converters.adapter import LoraAdapter, check_rank, initial_adapter
from converters.bases.contract import Base
from converters.bases.read import find_base, read_base
from converters.bases.targets import match_targets
from converters.formats.load import load_any
from edge.training.data.check import check_source, held_out
from edge.training.data.source import DataSource
from edge.training.local_run.run import Run, check_output, prepare_folder, save_metrics, save_result
from edge.training.requests import Loaded, Progress, Result, Scoring, Training, Validation
from edge.training.worker.supervisor import Worker


async def train_locally(
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
    check_output(run)
    base = find_base(run.base)
    model = read_base(base)
    if run.form == "gguf":
        model.naming()  # what GGUF has no names for is told before hours of training
    on_stage(f"reading {run.data.path}")
    on_stage(f"reads {check_source(run.data)}")
    valid = held_out(structs.replace(run.data, path=run.valid)) if run.valid else None
    if valid:
        check_source(valid)
    adapter = _first_adapter(run, model)
    begin = prepare_folder(run, adapter)
    async with Worker(base, run.backend, run.precision) as worker:
        on_stage(f"loading {run.base}")
        loaded = await worker.load()
        on_stage(f"training with {loaded.described} on {run.data.path}")
        order = Training(
            adapter=str(begin),
            data=run.data,
            plan=run.plan,
            folder=str(begin.parent),
            valid=valid,
            valid_every=run.valid_every,
        )
        with _stopped_by_signals(worker) if takes_signals else nullcontext():
            result = await worker.train(order, on_progress, on_validation)
        scores = await _scores(worker, begin, valid, run, result, on_stage) if valid else {}
    save_result(run, model, result)
    report = _report(run, loaded, adapter, result) | scores
    more = {"losses": result.losses, "validations": result.validations}
    save_metrics(run, report | more, result)
    return report


def _first_adapter(run: Run, model: Base) -> LoraAdapter:
    if run.adapter:
        return load_any(Path(run.adapter), model)
    targets = match_targets(model.modules, run.targets, run.num_layers)
    check_rank(targets, run.rank)
    return initial_adapter(targets, rank=run.rank, scale=run.scale, seed=run.plan.seed)


async def _scores(
    worker: Worker,
    begin: Path,
    valid: DataSource,
    run: Run,
    result: Result,
    on_stage: Callable[[str], None],
) -> dict[str, Any]:
    """Tells how well held-out data is predicted before and after, and after which step best.

    The scores while training are in its own precision; before and after are scored again, where another is
    asked for.
    """
    told: dict[str, Any] = {}
    ends = {"valid_before": (begin, 0), "valid_after": (Path(result.adapter), result.num_steps)}
    for name, (adapter, step) in ends.items():
        found = next((one.evaluation for one in result.validations if one.step == step), None)
        if found and found.precision == run.scored_in:
            told[name] = found.report()
        elif result.is_complete:
            on_stage(f"scoring {run.valid} in {run.scored_in}")
            request = Scoring(
                adapter=str(adapter),
                data=valid,
                seq_tokens=run.plan.seq_tokens,
                batch_tokens=run.plan.batch_tokens,
                precision=run.scored_in,
            )
            told[name] = (await worker.score(request)).report()
    best = min(result.validations, key=lambda one: one.evaluation.loss, default=None)
    return told | ({"best_step": best.step, "best_valid_loss": best.evaluation.loss} if best else {})


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
    why = loaded.precision_why
    if result.precision != loaded.precision:
        why = f"the run that was resumed began in {result.precision}"
    counts = ("num_steps", "num_examples", "num_tokens", "num_truncated", "seconds")
    ends = ("loss_before", "loss_after", "micro_batch_tokens", "is_complete", "asking")
    return {
        "base": run.base,
        "backend": loaded.backend,
        "backend_why": loaded.backend_why,
        "precision": result.precision,
        "precision_why": why,
        "adapter": str(run.adapter_path),
        "format": run.form,
        "rank": adapter.max_rank,
        "num_modules": len(adapter),
        "num_parameters": adapter.num_parameters,
        **{name: getattr(result, name) for name in counts},
        "tokens_per_s": result.num_tokens / max(result.seconds, 1e-9),
        **{name: getattr(result, name) for name in ends},
    }
