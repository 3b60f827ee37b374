"""The command `tunefleet data`: what training would make of a file, before anything is trained."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from converters.command import AsJson, Command, Program, examples, unfold
from converters.plain import plain, plain_json
from edge.choices import SEQ_TOKENS
from edge.commands.options import DATA, BaseOption, ColumnOptions, SeqTokens

if TYPE_CHECKING:
    from rich.text import Text

    from edge.training.data.summary import Lengths, Shown, Summary

BAR = 30  # characters of the histogram's longest bar
MAX_REASONS = 20
MAX_NUMBERS = 8  # rows named for each reason
LONG_RUN, RUN_END = 64, 20  # tokens of one kind in a row; of a longer run so many at each end are shown

CHECK = examples(
    "tunefleet data check chats.jsonl --base Qwen/Qwen3-0.6B",
    "tunefleet data check faq.csv --base model.gguf \\",
    "  --prompt-column question --completion-column answer",
)

app = typer.Typer(name="data", cls=Program, help="Looks at training data.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Looks at training data."""


def check(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", rich_help_panel=DATA, help="JSONL, a JSON array, CSV, Parquet, or a folder."
        ),
    ],
    base: BaseOption,
    *,
    columns: ColumnOptions,
    seq_tokens: SeqTokens = SEQ_TOKENS,
    as_json: AsJson = False,
) -> None:
    """Shows what training makes of a file: counts, lengths, what is cut, faults, and three examples.

    It loads the model's tokenizer, and not its weights. It ends with status 1 if a row cannot be used.
    """
    import msgspec

    from converters.bases.read import find_base
    from edge.backends.tokenizer import context_tokens, load_tokenizer
    from edge.commands.display import Display
    from edge.training.data.summary import summarise

    with Display() as display:
        display.stage(f"reading {file}")
        found = find_base(base)
        room = min(seq_tokens, context_tokens(found) or seq_tokens)
        summary = summarise(columns.source(str(file)), load_tokenizer(found), seq_tokens=room)
    if as_json:
        typer.echo(plain_json(msgspec.json.encode(summary).decode()))
    else:
        _print(summary)
    if summary.num_unusable or not summary.num_rows:
        raise typer.Exit(1)


app.command(cls=Command, epilog=CHECK)(unfold(check))


def _print(summary: "Summary") -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print(f"{plain(summary.path)}: {summary.num_rows:,} rows", soft_wrap=True)
    for name, text in _facts(summary):
        console.print(f"  {name:<12} {plain(text)}", soft_wrap=True)
    if summary.lengths:
        console.print("\n  tokens of an example")
        for line in _bars(summary.lengths):
            console.print(line, soft_wrap=True)
    has_colour = console.color_system is not None and not console.no_color
    for example in summary.examples:
        mark = "green is trained on" if has_colour else "[what] is trained on"
        console.print(f"\n{summary.unit} {example.row} ({mark}):")
        console.print(_marked(example, has_colour), soft_wrap=True)


def _facts(summary: "Summary") -> Iterator[tuple[str, str]]:
    from edge.training.data.faults import tell

    for form, count in summary.forms.items():
        yield "form", form if len(summary.forms) == 1 else f"{form}: {count:,} rows"
    if summary.lengths:
        share = summary.num_labels / summary.num_tokens
        spread = summary.lengths
        yield "examples", f"{summary.num_examples:,}"
        yield (
            "tokens",
            f"{summary.num_tokens:,}, {summary.num_labels:,} of them trained on ({share * 100:.0f} %)",
        )
        yield (
            "lengths",
            f"{spread.shortest:,} to {spread.longest:,}, median {spread.median:,}, 90 % up to "
            f"{spread.percentile_90:,} tokens",
        )
        yield f"over {summary.seq_tokens:,}", _cut(summary)
        yield "duplicates", _rows(summary.num_duplicates)
    yield "unusable", _rows(summary.num_unusable)
    for fault in summary.faults[:MAX_REASONS]:
        yield "", tell(fault, summary.unit, MAX_NUMBERS)
    if len(summary.faults) > MAX_REASONS:
        yield "", f"and {len(summary.faults) - MAX_REASONS} more reasons (--json names all)"
    for hint in summary.hints:
        yield "", hint


def _cut(summary: "Summary") -> str:
    parts = []
    if summary.num_split:
        parts.append(f"{_rows(summary.num_split)} of text cut into several examples, nothing lost")
    if summary.num_truncated:
        parts.append(
            f"{_rows(summary.num_truncated)} cut: {summary.num_tokens_lost:,} tokens lost, "
            f"{summary.num_labels_lost:,} of them to be trained on"
        )
    return "; ".join(parts) or "none"


def _rows(count: int) -> str:
    return "none" if not count else f"{count:,} row{'s' * (count > 1)}"


def _bars(lengths: "Lengths") -> Iterator[str]:
    most = max(entry.num_examples for entry in lengths.histogram)
    for entry in lengths.histogram:
        bar = "█" * max(round(BAR * entry.num_examples / most), int(entry.num_examples > 0))
        span = f"{entry.first:,}-{entry.last:,}"
        yield f"  {span:>15} {entry.num_examples:>9,} {bar}"


def _marked(example: "Shown", has_colour: bool) -> "Text":
    """Lays out tokens one after the other; their limits and what is trained on show."""
    from rich.text import Text

    text = Text()
    tokens = zip(map(_visible, example.pieces), example.is_trained_on, strict=True)
    for is_trained, run in groupby(tokens, key=lambda token: token[1]):
        words = [f"[{word}]" if is_trained and not has_colour else f"{word}|" for word, _ in run]
        if len(words) > LONG_RUN:
            left = len(words) - 2 * RUN_END
            words[RUN_END:-RUN_END] = [f" … {left:,} tokens … "]
        style = "bold green" if is_trained else "dim"
        text.append("".join(words), style if has_colour else "")
    return text


def _visible(piece: str) -> str:
    """Shows a token on one line: a file must not steer the terminal."""
    return plain(piece)
