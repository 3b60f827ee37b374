"""The one command, `tunefleet …`, and the names of `import tunefleet`.

The command mounts each package's commands, which import what they need when they run; a name is imported
when it is asked for. What type checkers see of the names stands in `coordinator/tunefleet.pyi`.

Run as: tunefleet --help
"""

import importlib
import sys
from typing import Annotated, Any

import typer

import converters.cli
import coordinator.commands.cli
import edge.commands.cli
from converters.command import Program, examples
from converters.errors import TunefleetError
from converters.plain import plain

__version__ = "0.1.0"
_HOMES = {  # each name and where it is defined
    "train": "edge.api",
    "evaluate": "edge.api",
    "generate": "edge.api",
    "load_adapter": "converters.api",
    "save_adapter": "converters.api",
    "convert": "converters.api",
    "Fleet": "coordinator.in_process.fleet",
    "Strategy": "coordinator.strategies.contract",
    "Method": "coordinator.strategies.method",
    "Stages": "coordinator.strategies.written",
    "LoraAdapter": "converters.adapter",
    "Factors": "converters.adapter",
    "TunefleetError": "converters.errors",
}
__all__ = ["__version__", *_HOMES]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"tunefleet {__version__}")
        raise typer.Exit


def _place(command: Any) -> int:
    """Tells where in the list of commands one stands."""
    name = command.name or command.callback.__name__
    return ORDER.index(name) if name in ORDER else len(ORDER)


ORDER = ("demo", "train", "eval", "generate", "convert", "serve", "join", "status", "history", "rollback")
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
for package in (edge.commands.cli, coordinator.commands.cli, converters.cli):
    app.registered_commands.extend(package.app.registered_commands)
    app.registered_groups.extend(package.app.registered_groups)
app.registered_commands.sort(key=_place)


@app.callback()
def options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="List every fault in an error, however many there are.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Fine-tunes LLM adapters where the data is, and merges them over MQTT."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tunefleet' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def main() -> None:
    """Runs the command; an error that the user can mend is one line, and exit status 1."""
    try:
        app()
    except TunefleetError as error:
        sys.exit(f"tunefleet: {plain(error)}")


if __name__ == "__main__":
    main()
