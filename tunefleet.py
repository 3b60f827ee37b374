"""The one command, `tunefleet …`: mounts each package's commands and imports what they need when they run.

Run as: tunefleet --help
"""

import sys
from typing import Annotated

import typer

import converters.cli
import coordinator.cli
import edge.cli
from converters.command import Program, examples
from converters.errors import TunefleetError


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"tunefleet {version('tunefleet')}")
        raise typer.Exit


EXAMPLES = examples(
    "tunefleet demo", "tunefleet train --base Qwen/Qwen3-0.6B --data chats.jsonl --out adapter"
)

app = typer.Typer(
    name="tunefleet",
    cls=Program,
    epilog=EXAMPLES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for package in (edge.cli, coordinator.cli, converters.cli):
    app.registered_commands.extend(package.app.registered_commands)
    app.registered_groups.extend(package.app.registered_groups)


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Fine-tunes LLM adapters where the data is, and merges them over MQTT."""


def main() -> None:
    """Runs the command; an error that the user can mend is one line, and exit status 1."""
    try:
        app()
    except TunefleetError as error:
        sys.exit(f"tunefleet: {error}")


if __name__ == "__main__":
    main()
