"""The command `tunefleet eval`: how well a base model predicts data, with an adapter or without."""

import asyncio

from converters.command import AsJson, examples
from edge.choices import BATCH_TOKENS, SEQ_TOKENS
from edge.commands.options import (
    AdapterOption,
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
    "tunefleet eval --base Qwen/Qwen3-0.6B --data held-out.jsonl",
    "tunefleet eval --base model.gguf --adapter adapter --data held-out.jsonl",
)


def evaluate(
    base: BaseOption,
    data: DataOption,
    adapter: AdapterOption = None,
    *,
    columns: ColumnOptions,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "float32",
    seq_tokens: SeqTokens = SEQ_TOKENS,
    batch_tokens: BatchTokens = BATCH_TOKENS,
    as_json: AsJson = False,
) -> None:
    """Scores a base model on data, with an adapter or without: loss, perplexity, accuracy, exact match."""
    from edge.commands.display import Display
    from edge.training.local_run.model import evaluate_locally
    from edge.training.requests import Scoring

    request = Scoring(
        data=columns.source(data), seq_tokens=seq_tokens, batch_tokens=batch_tokens, precision=precision
    )
    with Display() as display:
        loaded, evaluation = asyncio.run(evaluate_locally(base, request, adapter, backend, display.stage))
    why = {"backend": loaded.backend, "backend_why": loaded.backend_why}
    print_report(why | evaluation.report(), as_json)
