"""The classes of all commands: what `--help` shows beside the options.

A command whose options are None on the command line, because a settings file may hold them too, shows the
settings' own defaults: they are read when help is asked for, so that they stand in one place and `--help` of
other commands imports nothing. Examples are printed as they are written, so that they can be copied.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from converters.errors import TunefleetError

# Groups of commands.
FIRST, ALONE, FLEET = "To begin with", "On this machine", "In a fleet"

OUTPUT = "Output"  # the group of options that --help belongs to
SETTINGS = "Settings file"


class LogLevel(StrEnum):
    """What a command that runs for days tells of itself."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


LogLevelOption = Annotated[
    LogLevel,
    typer.Option(
        metavar="NAME",
        rich_help_panel=OUTPUT,
        help="What is told: debug (every message too), info, warning, or error (only what ends it).",
    ),
]


class Command(TyperCommand):
    """A command whose options are all in named groups, and whose epilog holds its examples."""

    def defaults(self) -> Mapping[str, Any]:
        """Finds the values that hold for options that are None, by parameter."""
        return {}

    def get_help_option(self, ctx: Any) -> Any:
        """Puts --help beside the other options that print something."""
        option: Any = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = OUTPUT
        return option

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Prints the help: usage, what the command does, its options in groups, its examples."""
        defaults = self.defaults()
        for param in self.params:
            if param.default is None:
                param.default = defaults.get(param.name or "")
        _shorten(self.get_params(ctx))
        with _examples_last(self):
            super().format_help(ctx, formatter)


class Program(TyperGroup):
    """The program itself: its commands in named groups, and examples below them."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command; with `-v`, ends with every fault that its error knows."""
        try:
            return super().invoke(ctx)
        except TunefleetError as error:
            if ctx.params.get("verbose"):  # of the whole program; a group of commands has none
                sys.exit(f"tunefleet: {error.whole}")
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Prints the help: usage, what the program does, its commands in groups, its examples."""
        _shorten(self.get_params(ctx))
        with _examples_last(self):
            super().format_help(ctx, formatter)


def examples(*lines: str) -> str:
    """Lays out commands to copy, as a command's epilog."""
    return "\n".join((" Examples:", "", *(f"   {line}" for line in lines), ""))


def _shorten(params: Iterable[Any]) -> None:
    """Leaves one name in the first column, which has no room for more, and no value for a flag."""
    for param in params:
        first, *others = param.opts
        if others:
            param.help, param.opts = f"{param.help} Also {', '.join(others)}.", [first]
        if getattr(param, "is_flag", False):
            param.metavar = ""


@contextmanager
def _examples_last(command: Any) -> Iterator[None]:
    """Prints the epilog behind the help, with its line breaks, which the help would take out."""
    epilog, command.epilog = command.epilog, None
    yield
    command.epilog = epilog
    if epilog:
        typer.echo(epilog)
