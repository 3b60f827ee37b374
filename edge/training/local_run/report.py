"""What a run came to, as it is printed and written to metrics.json."""

from typing import Any

from converters.adapter import LoraAdapter
from edge.training.local_run.run import Run
from edge.training.requests import Evaluation, Loaded, Result


def evaluation_report(evaluation: Evaluation) -> dict[str, Any]:
    """Lays out an evaluation."""
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


def run_report(run: Run, loaded: Loaded, adapter: LoraAdapter, result: Result) -> dict[str, Any]:
    """Lays out a run, without the loss of every step and the scores while it trained."""
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
