"""The classes of all commands: what `--help` shows beside the options.

A command whose options are None on the command line, because a settings file may hold them too, shows the
settings' own defaults: they are read when help is asked for, so that they stand in one place and `--help` of
other commands imports nothing. Examples are printed as they are written, so that they can be copied.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from converters.choices import LogLevel
from converters.errors import TunefleetError
from converters.plain import plain

# Groups of commands.
FIRST, LOCAL, FLEET = "To begin with", "On this machine", "In a fleet"

OUTPUT = "Output"  # the group of options that --help belongs to
SETTINGS = "Settings file"

AsJson = Annotated[
    bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print the report as one line of JSON.")
]
checks_against = partial(  # option of a base model, in a group of the command's own
    typer.Option,
    "--base",
    "--model",
    metavar="MODEL",
    help="The base model, a folder or a .gguf file, to check the adapter against; gguf needs it.",
)


class SettingsOptions(NamedTuple):
    """Where settings stand beside the command line."""

    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=SETTINGS,
            help="TOML with any of these settings, and more; the command line goes before it.",
        ),
    ] = None
    print_config: Annotated[
        bool,
        typer.Option("--print-config", rich_help_panel=SETTINGS, help="Print all settings as TOML and end."),
    ] = False


class EventOptions(NamedTuple):
    """What a command that runs for days tells of itself."""

    log_level: Annotated[
        LogLevel,
        typer.Option(
            metavar="NAME",
            rich_help_panel=OUTPUT,
            help="What is told: debug (every message too), info, warning, or error (only what ends it).",
        ),
    ] = "info"
    as_json: Annotated[
        bool,
        typer.Option("--json", rich_help_panel=OUTPUT, help="Print each event as one JSON object a line."),
    ] = False


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
                sys.exit(f"tunefleet: {plain(error.whole)}")
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Prints the help: usage, what the program does, its commands in groups, its examples."""
        _shorten(self.get_params(ctx))
        with _examples_last(self):
            super().format_help(ctx, formatter)


def unfold(command: Callable[..., None]) -> Callable[..., None]:
    """Makes an option of every field of a command's records.

    typer reads options from a signature, one parameter each. A parameter that is a `NamedTuple` stands there
    for all of its fields, so that options that belong together are declared, and passed on, together.
    """
    hints = get_type_hints(command, include_extras=True)
    records = {name: kind for name, kind in hints.items() if hasattr(kind, "_fields")}

    @wraps(command)
    def run(**given: Any) -> None:
        for name, kind in records.items():
            given[name] = kind(**{field: given.pop(field) for field in kind._fields})
        command(**given)

    parameters: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        if name in records:
            parameters += _fields(records[name])
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name]))
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _fields(record: Any) -> Iterator[Parameter]:
    for name, kind in get_type_hints(record, include_extras=True).items():
        default = record._field_defaults.get(name, Parameter.empty)
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


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
