"""The command `tunefleet eval`: how well a base model predicts data, with an adapter or without."""

import asyncio
from pathlib import Path
from typing import Any

from converters.command import AsJson, examples
from edge.choices import BATCH_TOKENS, SEQ_TOKENS
from edge.commands.options import (
    AdapterOption,
    BackendOption,
    BaseOption,
    BatchTokens,
    Columns,
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
    columns: Columns,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "float32",
    seq_tokens: SeqTokens = SEQ_TOKENS,
    batch_tokens: BatchTokens = BATCH_TOKENS,
    as_json: AsJson = False,
) -> None:
    """Scores a base model on data, with an adapter or without: loss, perplexity, accuracy, exact match."""
    from converters.bases.hub import find_base
    from edge.commands.display import Display
    from edge.training.data.check import check_source
    from edge.training.data.readers.folders import locate
    from edge.training.local_run import evaluation_report, score_alone
    from edge.training.worker.supervisor import Worker

    source = columns.source(str(locate(Path(data), is_held_out=True)))

    async def score() -> dict[str, Any]:
        found = find_base(base)
        async with Worker(found, backend, precision) as worker:
            loaded = await worker.load()
            display.stage(f"scoring {source.path} with {loaded.described}")
            evaluation = await score_alone(
                worker,
                found,
                Path(adapter) if adapter else None,
                source,
                seq_tokens=seq_tokens,
                batch_tokens=batch_tokens,
                precision=precision,
            )
            why = {"backend": loaded.backend, "backend_why": loaded.backend_why}
            return {**why, **evaluation_report(evaluation)}

    with Display() as display:
        display.stage(f"reading {source.path}")
        display.stage(f"reads {check_source(source)}")
        display.stage(f"loading {base}")
        report = asyncio.run(score())
    print_report(report, as_json)
