"""Commands of this package; heavy imports happen inside the command that needs them."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


class Target(StrEnum):
    """Formats that can be written."""

    peft = "peft"
    mlx = "mlx"
    gguf = "gguf"


@app.command()
def convert(
    src: Annotated[
        Path, typer.Argument(help="An adapter: PEFT or mlx-lm folder, llama.cpp's or our own file.")
    ],
    dst: Annotated[
        Path, typer.Argument(help="The folder to write, or the file for gguf; nothing may be there.")
    ],
    to: Annotated[Target, typer.Option(help="The format to write.")],
    base: Annotated[
        Path | None,
        typer.Option(help="The base model, a folder or .gguf file: checked against; gguf needs it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Converts an adapter to another tool's format, to the last bit or not at all."""
    from converters.base import read_base
    from converters.formats import check_free, detect_format, load_any, save_as

    check_free(to.value, dst)
    model = read_base(base) if base else None
    adapter = load_any(src, model)
    save_as(to.value, adapter, dst, model)
    report = {
        "from": detect_format(src),
        "to": to.value,
        "path": str(dst),
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
