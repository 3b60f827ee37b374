"""Commands of this package; heavy imports happen inside the command that needs them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from converters.choices import Format
from converters.command import FIRST, OUTPUT, AsJson, Command, checks_against, examples, unfold
from converters.command import FLEET as COMMANDS
from converters.plain import plain_json
from coordinator.commands import device
from coordinator.commands.broker_config import EXAMPLES as BROKER_CONFIG
from coordinator.commands.broker_config import broker_config
from coordinator.commands.certs import EXAMPLES as CERTS
from coordinator.commands.certs import certs
from coordinator.commands.serve import EXAMPLES as SERVE
from coordinator.commands.serve import ServeCommand, serve
from coordinator.demo.command import EXAMPLES as DEMO
from coordinator.demo.command import demo
from coordinator.watch.command import EXAMPLES as WATCH
from coordinator.watch.command import watch

if TYPE_CHECKING:
    from rich.console import RenderableType

    from coordinator.ledger.contract import Journal
    from coordinator.ledger.versions import VersionStore

STATUS = examples("tunefleet status --state coordinator", "tunefleet status --state coordinator --json")
HISTORY = examples(
    "tunefleet history --state coordinator",
    "tunefleet history --state coordinator --limit 5 --json",
)
ROLLBACK = examples(
    "tunefleet rollback 41 --state coordinator",
    "tunefleet rollback 0 --state coordinator --json",
)
EXPORT = examples(
    "tunefleet export --state coordinator --out adapter",
    "tunefleet export --state coordinator --version 41 --base model.gguf \\",
    "  --to gguf --out adapter.gguf",
)
BACKUP = examples(
    "tunefleet backup --state coordinator --out backup-monday",
    "tunefleet backup --state coordinator --out backup-monday --json",
)
FLEET = "Fleet"

app = typer.Typer()
app.command(cls=Command, epilog=DEMO, rich_help_panel=FIRST)(demo)
app.command(cls=Command, epilog=WATCH, rich_help_panel=COMMANDS)(unfold(watch))
app.command(cls=ServeCommand, epilog=SERVE, rich_help_panel=COMMANDS)(unfold(serve))
app.command(cls=Command, epilog=CERTS, rich_help_panel=COMMANDS)(certs)
app.command(cls=Command, epilog=BROKER_CONFIG, rich_help_panel=COMMANDS)(broker_config)
app.add_typer(device.app, rich_help_panel=COMMANDS)

State = Annotated[
    Path, Option(metavar="FOLDER", rich_help_panel=FLEET, help="The coordinator's --state folder.")
]
Watch = Annotated[
    bool, Option("--watch", rich_help_panel=OUTPUT, help="Keep the report up to date until Ctrl-C.")
]


@app.command(cls=Command, epilog=STATUS, rich_help_panel=COMMANDS)
def status(state: State, watch: Watch = False, as_json: AsJson = False) -> None:
    """Shows the fleet now: its version, what waits to be merged, its devices; also while it runs."""
    import time

    from coordinator.observers.status import FleetStatus, fleet_status

    def read() -> FleetStatus:
        with _opened(state) as (journal, versions):
            return fleet_status(journal, versions, time.time())

    if as_json:
        _report(read, watch)
        return
    from functools import partial

    from coordinator.observers.tables import status_view

    _show(lambda: partial(status_view, report=read(), now=time.time()), watch)


@app.command(cls=Command, epilog=HISTORY, rich_help_panel=COMMANDS)
def history(
    state: State,
    limit: Annotated[
        int,
        Option(metavar="N", min=1, rich_help_panel=FLEET, help="The latest N versions, and N rejections."),
    ] = 50,
    watch: Watch = False,
    as_json: AsJson = False,
) -> None:
    """Shows the versions, with who took part and how good they are, and the updates that were rejected."""
    from coordinator.observers.history import rejections, version_status

    def read() -> dict[str, Any]:
        with _opened(state) as (journal, versions):
            made = [version_status(version) for version in versions.history(limit)]
            return {"versions": made, "rejections": rejections(journal, limit)}

    if as_json:
        _report(read, watch)
        return
    from functools import partial

    from coordinator.observers.tables import history_view

    _show(lambda: partial(history_view, **read()), watch)


@app.command(cls=Command, epilog=ROLLBACK, rich_help_panel=COMMANDS)
def rollback(
    state: State,
    version: Annotated[int, Argument(min=0, metavar="VERSION", help="The version to go back to.")],
    as_json: AsJson = False,
) -> None:
    """Makes an older version current again, under a new number, also while the fleet runs."""
    import time

    from coordinator.observers.history import version_status

    with _opened(state) as (_, versions):
        made = versions.rollback(version, time.time())
    if as_json:
        _print_json(version_status(made))
    else:
        typer.echo(f"version {made.version} is current now: version {version} again")


@app.command(cls=Command, epilog=BACKUP, rich_help_panel=COMMANDS)
def backup(
    state: State,
    out: Annotated[
        Path,
        Option(
            metavar="FOLDER", rich_help_panel=FLEET, help="The folder to write; nothing may be there yet."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Copies a coordinator's state, also while it runs; the copy is a --state folder itself."""
    from coordinator.ledger.backup import make_backup

    made = make_backup(state, out)
    if as_json:
        _print_json(made)
    else:
        typer.echo(
            f"version {made.version} and {made.waiting} waiting updates → {out} "
            f"({made.num_files} files, {made.size_bytes / 1e6:.1f} MB)\n"
            "It holds the coordinator's private key: keep it where nobody else reads it."
        )


@app.command(cls=Command, epilog=EXPORT, rich_help_panel=COMMANDS)
def export(
    state: State,
    out: Annotated[
        Path,
        Option(
            metavar="PATH",
            rich_help_panel=FLEET,
            help="The folder to write, or for gguf the file; nothing may be there yet.",
        ),
    ],
    to: Annotated[
        Format,
        Option(
            "--to",
            "--format",
            metavar="NAME",
            rich_help_panel=FLEET,
            help="What to write: peft, mlx or gguf.",
        ),
    ] = "peft",
    version: Annotated[
        int | None,
        Option(
            metavar="VERSION", min=0, rich_help_panel=FLEET, help="Which version; without it the current one."
        ),
    ] = None,
    base: Annotated[Path | None, checks_against(rich_help_panel=FLEET)] = None,
    as_json: AsJson = False,
) -> None:
    """Writes a version as an adapter that other tools load."""
    from converters.bases.read import find_base
    from converters.formats.save import check_free
    from coordinator.commands.exporting import export_version
    from coordinator.observers.history import caution, num_merged

    check_free(to, out)
    with _opened(state) as (journal, versions):
        chosen = versions.version(version) if version is not None else versions.history(limit=1)[0]
        told = caution(versions, chosen, versions.whole(chosen))
        num_updates = num_merged(versions, chosen)
        export_version(journal, versions, chosen, out, to, find_base(str(base)) if base else None)
    if told:
        typer.echo(f"tunefleet: {told}", err=True)
    if as_json:
        facts = {"version": chosen.version, "to": to, "path": str(out), "sha256": chosen.master}
        _print_json(facts | {"num_updates": num_updates, "caution": told})
    else:
        typer.echo(f"version {chosen.version} → {out} ({to})")


@contextmanager
def _opened(state: Path) -> "Iterator[tuple[Journal, VersionStore]]":
    """Opens a state folder that holds a version, without its lock.

    Raises:
        StateError: It is no coordinator's.
        UnknownVersion: It holds no version yet.
    """
    from coordinator.errors import UnknownVersion
    from coordinator.ledger.state import open_ledger

    with open_ledger(state) as (journal, versions):
        if versions.current() is None:
            raise UnknownVersion(f"{state}: holds no version yet; `tunefleet serve` makes the first")
        yield journal, versions


def _report(read: "Callable[[], object]", watch: bool) -> None:
    """Prints a report as JSON, with `watch` again whenever it has changed."""
    import msgspec

    if watch:
        from coordinator.observers.tables import watch_lines

        watch_lines(lambda: plain_json(msgspec.json.encode(read()).decode()))
    else:
        _print_json(read())


def _show(look: "Callable[[], Callable[[int], RenderableType]]", watch: bool) -> None:
    """Prints a report for people, with `watch` until Ctrl-C."""
    from coordinator.observers import tables

    if watch:
        tables.watch(look)
    else:
        tables.show(look())


def _print_json(report: object) -> None:
    import msgspec

    typer.echo(plain_json(msgspec.json.encode(report).decode()))
