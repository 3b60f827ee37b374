"""Commands of this package; heavy imports happen inside the command that needs them."""

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from converters.choices import Format
from converters.command import LOCAL, AsJson, Command, checks_against, examples

EXAMPLES = examples(
    "tunefleet convert mlx-adapter peft-adapter --to peft",
    "tunefleet convert peft-adapter adapter.gguf --to gguf --base Qwen3-0.6B",
)
FORMAT = "Format"

app = typer.Typer()


@app.command(cls=Command, epilog=EXAMPLES, rich_help_panel=LOCAL)
def convert(
    src: Annotated[
        Path,
        Argument(
            metavar="FROM",
            help="The adapter: a folder of PEFT or mlx-lm, a .gguf file, or tunefleet's own file.",
        ),
    ],
    dst: Annotated[
        Path,
        Argument(metavar="TO", help="The folder to write, or for gguf the file; nothing may be there yet."),
    ],
    to: Annotated[
        Format, Option(metavar="NAME", rich_help_panel=FORMAT, help="What to write: peft, mlx or gguf.")
    ],
    base: Annotated[Path | None, checks_against(rich_help_panel=FORMAT)] = None,
    as_json: AsJson = False,
) -> None:
    """Converts an adapter to another tool's format, to the last bit or not at all."""
    from converters.api import convert as convert_adapter

    done = convert_adapter(src, dst, to=to, base=base)
    adapter = done.adapter
    report = {
        "from": done.source,
        "to": done.form,
        "path": str(dst),
        "base": done.base,
        "modules": len(adapter),
        "rank": adapter.max_rank,
        "parameters": adapter.num_parameters,
        "scales": sorted({factors.scale for _, factors in adapter}),
    }
    if as_json:
        typer.echo(json.dumps(report))
    else:
        typer.echo(
            f"{src} ({report['from']}) → {dst} ({report['to']}): {report['modules']} modules, "
            f"rank {report['rank']}, {report['parameters']:,} parameters"
        )
