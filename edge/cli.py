"""Commands of this package; heavy imports happen inside the command that needs them."""

import typer

app = typer.Typer()
