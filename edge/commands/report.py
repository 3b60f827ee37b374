"""What a command found out, on stdout."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import typer

from converters.plain import plain


def print_report(report: Mapping[str, Any], as_json: bool) -> None:
    """Prints a report as a table, or as one line of JSON."""
    if as_json:
        typer.echo(json.dumps(report))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    for name, value in _rows(report):
        table.add_row(name.removeprefix("num_").replace("_", " "), Text(plain(value)))
    Console().print(table)


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in report.items():
        if isinstance(value, dict):
            yield from ((f"{name} {inner}", text) for inner, text in _rows(value))
        elif isinstance(value, float):
            yield name, f"{value:,.4g}"
        else:
            yield name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
