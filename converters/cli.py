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


@app.command()
def convert(
    src: Annotated[Path, typer.Argument(help="An adapter: PEFT or mlx-lm folder, or tunefleet's own file.")],
    dst: Annotated[Path, typer.Argument(help="The folder to write; it must not hold anything.")],
    to: Annotated[Target, typer.Option(help="The format to write.")],
    base: Annotated[
        Path | None, typer.Option(help="The base model's folder: names and shapes are checked against it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Converts an adapter to another tool's format, to the last bit or not at all."""
    from converters.base import read_base
    from converters.errors import AdapterError
    from converters.formats import detect_format, load_any, save_as
    from converters.layout import check_fit

    if dst.is_file() or (dst.is_dir() and any(dst.iterdir())):
        raise AdapterError(f"{dst}: is not empty; give a folder that is new")
    modules = read_base(base).modules if base else None
    adapter = load_any(src, modules)
    if modules is not None:
        check_fit(adapter, modules)
    save_as(to.value, adapter, dst, modules)
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
