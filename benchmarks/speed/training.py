"""Training speed of the torch and MLX backends against what people would use: useful tokens a second.

torch: Hugging Face Trainer + PEFT (batch 8, dynamic padding, LoRA r = 8 on q and v, at most 512 tokens) on
rows of all ten Dolly clients, completions labelled. MLX: the training loop of `mlx_lm.lora` with its compiled
step, its batches of like lengths and its prompt mask. Both ways see the same examples in the same steps, from
the same adapter and at the same rate, so that losses can be compared step by step: only the time differs.
Useful tokens are those of the examples: padding does not count. Runs are processes of their own that take
turns (A B A B ...) with two threads each; the first steps of each, in which libraries warm up, are not timed.
Beside the wall clock stands the processor time of all threads, for machines that others use at the same time.

Models: tinystories-656K (vocabulary 2,048), and a random LLaMA of 48 M parameters with a tokenizer of 32,000
trained on the same rows (how long a step takes does not depend on what the weights know).

Run as: python -m benchmarks.speed.training torch|mlx [--quick] [--json] [--repeats 3]
"""

import argparse
import contextlib
import io
import json
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from benchmarks.assets import ASSETS, dolly_clients
from benchmarks.assets import NAME as ASSETS_NAME
from benchmarks.measuring import as_json, last_line, run_module, spread
from benchmarks.speed.rivals import (
    BATCH,
    LR,
    WARM_STEPS,
    Clock,
    Timing,
    Work,
    first_adapter_of,
    mlx_lm_batches,
    read_examples,
    run_mlx_lm,
    run_trainer,
    timing,
)
from edge.backends import load_model
from edge.backends.batch_layout import row_each
from edge.backends.contract import Batch
from edge.training.packing import Example, build_batch

TARGETS = {"torch": 2.0, "mlx": 1.2}
UNSEEN = np.float32(1e-30)  # a weight that asks for logits and leaves the loss as it is


class Stage(NamedTuple):
    """Our backend with some of its means switched on."""

    name: str
    precision: str
    is_packed: bool
    at_labels: bool


STAGES = (
    Stage("ours: padded, all logits, float32", "float32", is_packed=False, at_labels=False),
    Stage("+ packing", "float32", is_packed=True, at_labels=False),
    Stage("+ logits at labels only", "float32", is_packed=True, at_labels=True),
    Stage("+ bfloat16", "bfloat16", is_packed=True, at_labels=True),
)


def main() -> None:
    """Runs one benchmark and prints it; `--child` is the contestant's own process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("backend", choices=TARGETS)
    parser.add_argument("--quick", action="store_true", help="one repeat of a few steps")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("CONTESTANT", "WORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        contestant, work = options.child
        run_child(options.backend, contestant, msgspec.json.decode(work, type=Work))
        return
    if not ASSETS.exists():
        raise SystemExit(f"benchmarks.speed.training needs {ASSETS_NAME}")
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"tinystories-656K": 40, "LLaMA-48M": 8 if options.backend == "torch" else 4}
        works = prepare(Path(folder), {name: 4 if options.quick else size for name, size in sizes.items()})
        repeats = 1 if options.quick else options.repeats
        report = {name: measure(options.backend, work, repeats) for name, work in works.items()}
    print(as_json(report) if options.json else render(report, options.backend))


def prepare(folder: Path, num_steps: dict[str, int]) -> dict[str, Work]:
    """Writes the data and the random model; the same bytes every time."""
    works = {}
    for name, steps in num_steps.items():
        data = folder / f"{name}.jsonl"
        rows = read_rows(BATCH * (steps + WARM_STEPS))
        data.write_text("\n".join(json.dumps(row) for row in rows))
        is_random = name.startswith("LLaMA")
        base = make_random_llama(folder / "llama") if is_random else ASSETS / "models" / name
        works[name] = Work(str(base), str(data), steps)
    return works


def read_rows(count: int | None = None) -> list[dict[str, str]]:
    """Draws rows of all ten clients; None is all rows."""
    rows = [
        {
            "prompt": "\n".join(filter(None, (row["instruction"], row["context"], ""))),
            "completion": row["response"],
        }
        for client in dolly_clients()
        for row in client
        if row["response"]
    ]
    return random.Random(0).sample(rows, count or len(rows))


def make_random_llama(folder: Path) -> Path:
    """Writes 48 M parameters, 16 M of them embeddings tied to the head, and a BPE tokenizer of 32,000."""
    import tokenizers
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = tokenizers.ByteLevelBPETokenizer()
    texts = (row["prompt"] + row["completion"] for row in read_rows())
    tokenizer.train_from_iterator(texts, 32_000, special_tokens=["<s>", "</s>"], show_progress=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def measure(backend: str, work: Work, repeats: int) -> dict[str, Any]:
    """Lets the contestants take turns; medians and spreads of the ratios within each turn."""
    contestants = {"torch": ("trainer", "ours"), "mlx": ("mlx_lm", "ours")}[backend]
    turns = []
    for _ in range(repeats):
        timings = [timing for name in contestants for timing in spawn(backend, name, work)]
        turns.append({timing.name: timing for timing in timings})
    rival = next(iter(turns[0]))
    return {
        name: compare([turn[name] for turn in turns], [turn[rival] for turn in turns]) for name in turns[0]
    }


def compare(ours: Sequence[Timing], theirs: Sequence[Timing]) -> dict[str, Any]:
    """Returns medians, the spread of the ratios within each turn, and how far the losses are apart."""
    pairs = list(zip(ours, theirs, strict=True))
    losses = zip(ours[0].losses, theirs[0].losses, strict=True)
    return {
        "tokens_per_s": statistics.median(one.tokens_per_s for one in ours),
        "ratio": spread([one.tokens_per_s / other.tokens_per_s for one, other in pairs]),
        "cpu_ratio": statistics.median(one.tokens_per_cpu_s / other.tokens_per_cpu_s for one, other in pairs),
        "first_loss": ours[0].losses[0],
        "last_loss": ours[0].losses[-1],
        "largest_loss_difference": max(abs(one - other) for one, other in losses),
    }


def spawn(backend: str, contestant: str, work: Work) -> list[Timing]:
    """Runs one contestant in a process of its own, with two threads."""
    words = [backend, "--child", contestant, msgspec.json.encode(work).decode()]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    printed = run_module("benchmarks.speed.training", *words, environment=threads)
    return msgspec.json.decode(last_line(printed), type=list[Timing])


def run_child(backend: str, contestant: str, work: Work) -> None:
    """Runs a contestant; the last line that it prints holds its timings."""
    ours = {"torch": run_torch, "mlx": run_mlx}[backend]
    run = {"trainer": run_trainer, "mlx_lm": run_mlx_lm, "ours": ours}[contestant]
    with contextlib.redirect_stdout(io.StringIO()):
        timings = run(work)
    print(msgspec.json.encode(timings).decode())


def run_torch(work: Work) -> list[Timing]:
    """Runs our torch backend, stage by stage."""
    return [_run_torch(stage, work) for stage in STAGES]


def run_mlx(work: Work) -> list[Timing]:
    """Runs our MLX backend as it stands."""
    model = load_model("mlx", Path(work.base), precision="float32")
    drawn = list(mlx_lm_batches(read_examples(work), 2))  # its second epoch is timed, as the rival's
    examples = [example for rows in drawn for example in rows]
    batches = [build_batch(rows) for rows in drawn]
    return [_time_steps("ours", model, batches, examples, warm=len(batches) // 2, clip_norm=0.0)]


def _run_torch(stage: Stage, work: Work) -> Timing:
    model: Any = load_model("torch", Path(work.base), precision=stage.precision)  # type: ignore[arg-type]
    if not stage.is_packed:
        model.forward.layout = row_each
    examples = read_examples(work)
    batches = []
    for rows in chunks(examples, BATCH):
        batch = build_batch(rows if stage.is_packed else _pad(rows))
        if not stage.at_labels:
            batch = batch._replace(weights=np.maximum(batch.weights, UNSEEN))
        batches.append(batch)
    return _time_steps(stage.name, model, batches, examples, warm=WARM_STEPS, clip_norm=1.0)


def _pad(examples: Sequence[Example]) -> Iterator[Example]:
    # As a collator does: one example a row, all as wide as the longest, and no row shows that it is padded.
    longest = max(len(example.tokens) for example in examples)
    for tokens, labels in examples:
        room = (0, longest - len(tokens))
        yield Example(np.pad(tokens, room), np.pad(labels, room))


def _time_steps(
    name: str,
    model: Any,
    batches: Sequence[Batch],
    examples: Sequence[Example],
    *,
    warm: int,
    clip_norm: float,
) -> Timing:
    model.set_adapter(first_adapter_of(model.card.modules))
    model.begin(weight_decay=0.0, clip_norm=clip_norm)
    clock, losses = Clock(), []
    for batch in batches:
        losses.append(model.step([batch], LR))
        clock.tick()
    return timing(name, examples, clock, losses, warm=warm)


def chunks(items: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """Cuts `items` into lists of `size`."""
    return (items[at : at + size] for at in range(0, len(items), size))


def render(report: dict[str, Any], backend: str) -> str:
    """Returns a table for people."""
    lines = []
    for model, rows in report.items():
        lines.append(
            f"{model:34s}   tok/s  ratio (lowest, highest)  by cpu   loss, first to last  differs by"
        )
        for name, row in rows.items():
            ratio = row["ratio"]
            ends = f"({ratio.lowest:6.2f}, {ratio.highest:6.2f})"
            speed = f"{row['tokens_per_s']:8,.0f} {ratio.median:6.2f} {ends}"
            losses = f"{row['first_loss']:8.4f} {row['last_loss']:8.4f}"
            losses += f" {row['largest_loss_difference']:11.1e}"
            lines.append(f"  {name:32s} {speed} {row['cpu_ratio']:9.2f}   {losses}")
    return "\n".join([*lines, f"target: {TARGETS[backend]} on the larger model"])


if __name__ == "__main__":
    main()
