"""Commands of this package; heavy imports happen inside the command that needs them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from converters.command import FIRST, OUTPUT, SETTINGS, Command, LogLevel, LogLevelOption, examples
from converters.command import FLEET as COMMANDS
from coordinator.demo.command import EXAMPLES as DEMO
from coordinator.demo.command import demo
from coordinator.watch.command import EXAMPLES as WATCH
from coordinator.watch.command import watch
from edge.transport import options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from coordinator.journal import Journal
    from coordinator.versions import VersionStore

SERVE = examples(
    "tunefleet serve --broker mqtt://HOST --fleet home --base Qwen/Qwen3-0.6B \\",
    "  --state coordinator --calibration held-out.jsonl",
    "tunefleet serve --config fleet.toml --wait",
)
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
FLEET, ADAPTER, MERGING = "Fleet", "Adapter", "Merging"
RECIPE, SCORES, DEVICES = "Training on devices", "Scores", "Devices"
PLACES = {  # in the settings, of options that bear another name there
    "rank": "ranks",
    "calibration": "calibration_data",
    "wait": "waits_for_broker",
} | {name: f"recipe.{name}" for name in ("steps", "seconds", "lr", "seq_tokens", "batch_tokens", "attempts")}

SEEN_BY_ALL = (
    "every user of this machine can read the broker's password in the list of processes; "
    "give --broker-user and --broker-password-file, or the URL in TUNEFLEET_BROKER"
)

app = typer.Typer()
app.command(cls=Command, epilog=DEMO, rich_help_panel=FIRST)(demo)
app.command(cls=Command, epilog=WATCH, rich_help_panel=COMMANDS)(watch)

State = Annotated[
    Path, Option(metavar="FOLDER", rich_help_panel=FLEET, help="The coordinator's --state folder.")
]
Watch = Annotated[
    bool, Option("--watch", rich_help_panel=OUTPUT, help="Keep the report up to date until Ctrl-C.")
]
Json = Annotated[bool, Option("--json", rich_help_panel=OUTPUT, help="Print the report as one line of JSON.")]


class ServeCommand(Command):
    """`tunefleet serve`, which shows the defaults of `coordinator.config`."""

    places = PLACES

    def defaults(self) -> Mapping[str, Any]:
        """See `Command.defaults`."""
        from coordinator.config import RANKS, SCALE, TARGETS, CoordinatorConfig
        from edge.settings import defaults_of

        found = defaults_of(CoordinatorConfig, (param.name or "" for param in self.params), self.places)
        found |= {"rank": RANKS, "scale": SCALE, "targets": TARGETS}
        return {
            name: ",".join(map(str, value)) if isinstance(value, tuple) else value
            for name, value in found.items()
        }


class Strategy(StrEnum):
    """How a buffer becomes a version."""

    fedavg = "fedavg"
    fedasync = "fedasync"
    fedbuff = "fedbuff"
    alignfed = "alignfed"
    alignfed_literal = "alignfed-literal"
    ffa_lora = "ffa-lora"
    fedsa_lora = "fedsa-lora"
    flora = "flora"
    flexlora = "flexlora"
    hetlora = "hetlora"
    fedex_lora = "fedex-lora"
    lora_fair = "lora-fair"
    tunefleet = "tunefleet"


class Space(StrEnum):
    """What is added up."""

    product = "product"
    factors = "factors"


class Encoding(StrEnum):
    """Of updates."""

    f32 = "f32"
    f16 = "f16"
    int8 = "int8"
    int4 = "int4"


class Precision(StrEnum):
    """Of scores."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    auto = "auto"


class Enrolment(StrEnum):
    """Which devices may come."""

    open = "open"
    closed = "closed"


class Form(StrEnum):
    """Formats of an exported adapter."""

    peft = "peft"
    mlx = "mlx"
    gguf = "gguf"


@app.command(cls=ServeCommand, epilog=SERVE, rich_help_panel=COMMANDS)
def serve(
    fleet: Annotated[
        str | None,
        Option(
            metavar="NAME",
            rich_help_panel=FLEET,
            help="The fleet's name: a-z, 0-9 and -. Required.",
        ),
    ] = None,
    broker: Annotated[
        str | None,
        Option(
            metavar="URL",
            rich_help_panel=FLEET,
            help="mqtt://user:password@host:port, or mqtts:// for TLS; or TUNEFLEET_BROKER. Required.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        Option(
            "--base",
            "--model",
            metavar="MODEL",
            rich_help_panel=FLEET,
            help="The base model: a Hugging Face or MLX folder, a .gguf file, or a name on the hub. "
            "Required.",
        ),
    ] = None,
    state: Annotated[
        str | None,
        Option(
            metavar="FOLDER",
            rich_help_panel=FLEET,
            help="Where this coordinator keeps its key, its journal and its versions; for it alone. "
            "Required.",
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        Option(
            metavar="PATH",
            rich_help_panel=ADAPTER,
            help="Begin with this adapter: a folder of PEFT or mlx-lm, a .gguf file, or tunefleet's own. "
            "Rank, scale and layers are then its.",
        ),
    ] = None,
    rank: Annotated[
        str | None,
        Option(
            "--rank",
            "--ranks",
            metavar="N",
            rich_help_panel=ADAPTER,
            help="The rank of the fleet's adapter, and of smaller tiers for small devices: 8, or 8,4.",
        ),
    ] = None,
    scale: Annotated[
        float | None,
        Option(
            metavar="X",
            rich_help_panel=ADAPTER,
            help="What the adapter's product is multiplied by: lora_alpha / rank in PEFT.",
        ),
    ] = None,
    targets: Annotated[
        str | None,
        Option(
            metavar="NAMES",
            rich_help_panel=ADAPTER,
            help="The layers that carry the adapter: endings of their names, with commas, or all-linear, "
            "which is every layer but the head.",
        ),
    ] = None,
    num_layers: Annotated[
        int | None,
        Option(
            metavar="N",
            min=-1,
            rich_help_panel=ADAPTER,
            help="Carry the adapter in the last N blocks only; -1 is all of them.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        Option(
            metavar="N",
            min=0,
            rich_help_panel=ADAPTER,
            help="Of version 0, the adapter that training begins with.",
        ),
    ] = None,
    strategy: Annotated[
        Strategy | None,
        Option(
            metavar="NAME",
            rich_help_panel=MERGING,
            help="How updates become a version: fedavg, fedasync, fedbuff, alignfed, alignfed-literal, "
            "ffa-lora, fedsa-lora, flora, flexlora, hetlora, fedex-lora, lora-fair or tunefleet. "
            "Without it tunefleet with --calibration, fedbuff otherwise.",
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        Option(
            metavar="FILE",
            rich_help_panel=MERGING,
            help="Examples, a few dozen, by which steps and devices are judged; no device trains on them.",
        ),
    ] = None,
    space: Annotated[
        Space | None,
        Option(
            metavar="NAME",
            rich_help_panel=MERGING,
            help="What is added up: product, the layers' true change, or factors. Without it the "
            "strategy's own.",
        ),
    ] = None,
    buffer_size: Annotated[
        int | None,
        Option(
            metavar="N",
            min=1,
            rich_help_panel=MERGING,
            help="Updates that make a version; without it one of each device online, in a fleet of more "
            "than 4 fewer.",
        ),
    ] = None,
    time_budget_s: Annotated[
        float | None,
        Option(
            metavar="S",
            min=0,
            rich_help_panel=MERGING,
            help="Merge what is there when an update has waited for S seconds; 0 waits for a full buffer. "
            "Without it 60, and up to 600 where training takes longer.",
        ),
    ] = None,
    max_staleness: Annotated[
        int | None,
        Option(
            metavar="N",
            min=0,
            rich_help_panel=MERGING,
            help="Reject updates that are more than N versions old.",
        ),
    ] = None,
    server_lr: Annotated[
        float | None,
        Option(
            metavar="X",
            rich_help_panel=MERGING,
            help="What a merged step is multiplied by.",
        ),
    ] = None,
    max_versions: Annotated[
        int | None,
        Option(
            metavar="N",
            min=0,
            rich_help_panel=MERGING,
            help="End when version N is made; 0 never ends.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        Option(
            metavar="N",
            min=0,
            rich_help_panel=RECIPE,
            help="Optimizer steps of one task; 0 leaves it to --seconds.",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        Option(
            metavar="S",
            min=0,
            rich_help_panel=RECIPE,
            help="Seconds of one task, with --steps 0.",
        ),
    ] = None,
    lr: Annotated[
        float | None,
        Option(
            "--lr",
            "--learning-rate",
            metavar="X",
            min=0,
            rich_help_panel=RECIPE,
            help="AdamW's learning rate on devices.",
        ),
    ] = None,
    seq_tokens: Annotated[
        int | None,
        Option(
            "--seq-tokens",
            "--max-seq-length",
            metavar="N",
            min=2,
            rich_help_panel=RECIPE,
            help="The longest sequence, in tokens; longer examples are cut.",
        ),
    ] = None,
    batch_tokens: Annotated[
        int | None,
        Option(
            metavar="N",
            min=2,
            rich_help_panel=RECIPE,
            help="Tokens of one step, over all of its sequences.",
        ),
    ] = None,
    attempts: Annotated[
        int | None,
        Option(
            metavar="N",
            min=0,
            rich_help_panel=RECIPE,
            help="Tasks that a device may do on one version; 0 sets no bound.",
        ),
    ] = None,
    encoding: Annotated[
        Encoding | None,
        Option(
            metavar="NAME",
            rich_help_panel=RECIPE,
            help="How updates are sent: f32, f16, int8 or int4; smaller ones lose a little, which the "
            "next update makes up for.",
        ),
    ] = None,
    eval_data: Annotated[
        str | None,
        Option(
            metavar="FILE",
            rich_help_panel=SCORES,
            help="Examples that every version is scored on; no device trains on them.",
        ),
    ] = None,
    eval_every: Annotated[
        int | None,
        Option(
            metavar="N",
            min=1,
            rich_help_panel=SCORES,
            help="Score every N-th version.",
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        Option(
            metavar="NAME",
            rich_help_panel=SCORES,
            help="What versions are scored and steps are judged in: float32, bfloat16, or auto, the faster.",
        ),
    ] = None,
    enrolment: Annotated[
        Enrolment | None,
        Option(
            metavar="NAME",
            rich_help_panel=DEVICES,
            help="open takes any device; closed only those whose keys stand in --config.",
        ),
    ] = None,
    wait: options.Wait = False,
    broker_user: options.User = None,
    broker_password_file: options.PasswordFile = None,
    protocol: options.Protocol = None,
    tls_ca: options.TlsCa = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    config: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            rich_help_panel=SETTINGS,
            help="TOML with any of these settings, and more; the command line goes before it.",
        ),
    ] = None,
    print_config: Annotated[
        bool,
        Option(
            "--print-config",
            rich_help_panel=SETTINGS,
            help="Print all settings as TOML and end.",
        ),
    ] = False,
    log_level: LogLevelOption = LogLevel.info,
    as_json: Annotated[
        bool,
        Option("--json", rich_help_panel=OUTPUT, help="Print each event as one JSON object a line."),
    ] = False,
) -> None:
    """Runs the coordinator, which merges what devices learn into version after version."""
    from coordinator.config import config_text, read_config

    recipe = {"steps": steps, "seconds": seconds, "lr": lr, "attempts": attempts}
    recipe |= {"seq_tokens": seq_tokens, "batch_tokens": batch_tokens}
    overrides: dict[str, Any] = {
        "broker": broker, "fleet": fleet, "base": base, "state": state, "scale": scale, "seed": seed,
        "adapter": adapter,
        "ranks": _numbers(rank), "targets": _names(targets), "num_layers": num_layers,
        "strategy": strategy, "calibration_data": calibration, "space": space,
        "buffer_size": buffer_size, "time_budget_s": time_budget_s,
        "max_staleness": max_staleness, "server_lr": server_lr, "encoding": encoding, "recipe": recipe,
        "enrolment": enrolment, "eval_data": eval_data, "eval_every": eval_every, "precision": precision,
        "max_versions": max_versions,
        "broker_user": broker_user, "broker_password_file": broker_password_file,
        "protocol": protocol, "tls_ca": tls_ca, "tls_cert": tls_cert, "tls_key": tls_key,
        "waits_for_broker": wait or None,
    }  # fmt: skip
    settings = read_config(config, overrides)
    if print_config:
        from coordinator.beginning import settle_folder

        typer.echo(config_text(settle_folder(settings)), nl=False)
        return
    from coordinator.serve import serve_fleet
    from edge.events import Event, shown
    from edge.transport.settings import has_password

    with shown(as_json, log_level=log_level.value, has_bars=False) as show:
        if broker and has_password(broker):
            show(Event("warning", SEEN_BY_ALL, {}))
        serve_fleet(settings, show)


@app.command(cls=Command, epilog=STATUS, rich_help_panel=COMMANDS)
def status(state: State, watch: Watch = False, as_json: Json = False) -> None:
    """Shows the fleet now: its version, what waits to be merged, its devices; also while it runs."""
    import time

    from coordinator.reports import FleetStatus, fleet_status

    def read() -> FleetStatus:
        with _opened(state) as (journal, versions):
            return fleet_status(journal, versions, time.time())

    if as_json:
        _report(read, watch)
        return
    from functools import partial

    from coordinator.screen import status_view

    _show(lambda: partial(status_view, report=read(), now=time.time()), watch)


@app.command(cls=Command, epilog=HISTORY, rich_help_panel=COMMANDS)
def history(
    state: State,
    limit: Annotated[
        int,
        Option(metavar="N", min=1, rich_help_panel=FLEET, help="The latest N versions, and N rejections."),
    ] = 50,
    watch: Watch = False,
    as_json: Json = False,
) -> None:
    """Shows the versions, with who took part and how good they are, and the updates that were rejected."""
    from coordinator.reports import rejections, version_status

    def read() -> dict[str, Any]:
        with _opened(state) as (journal, versions):
            made = [version_status(version) for version in versions.history(limit)]
            return {"versions": made, "rejections": rejections(journal, limit)}

    if as_json:
        _report(read, watch)
        return
    from functools import partial

    from coordinator.screen import history_view

    _show(lambda: partial(history_view, **read()), watch)


@app.command(cls=Command, epilog=ROLLBACK, rich_help_panel=COMMANDS)
def rollback(
    state: State,
    version: Annotated[int, Argument(min=0, metavar="VERSION", help="The version to go back to.")],
    as_json: Json = False,
) -> None:
    """Makes an older version current again, under a new number, also while the fleet runs."""
    import time

    from coordinator.reports import version_status

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
    as_json: Json = False,
) -> None:
    """Copies a coordinator's state, also while it runs; the copy is a --state folder itself."""
    from coordinator.backup import make_backup

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
        Form,
        Option(
            "--to",
            "--format",
            metavar="NAME",
            rich_help_panel=FLEET,
            help="What to write: peft, mlx or gguf.",
        ),
    ] = Form.peft,
    version: Annotated[
        int | None,
        Option(
            metavar="VERSION", min=0, rich_help_panel=FLEET, help="Which version; without it the current one."
        ),
    ] = None,
    base: Annotated[
        Path | None,
        Option(
            "--base",
            "--model",
            metavar="MODEL",
            rich_help_panel=FLEET,
            help="The base model, a folder or a .gguf file, to check the adapter against; gguf needs it.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Writes a version as an adapter that other tools load."""
    from converters.formats import check_free
    from coordinator.exporting import export_version
    from coordinator.reports import caution, num_merged
    from edge.training.backends.hub import find_base

    check_free(to.value, out)
    with _opened(state) as (journal, versions):
        chosen = versions.version(version) if version is not None else versions.history(limit=1)[0]
        told = caution(versions, chosen, versions.whole(chosen))
        num_updates = num_merged(versions, chosen)
        export_version(journal, versions, chosen, out, to.value, find_base(str(base)) if base else None)
    if told:
        typer.echo(f"tunefleet: {told}", err=True)
    if as_json:
        facts = {"version": chosen.version, "to": to.value, "path": str(out), "sha256": chosen.master}
        _print_json(facts | {"num_updates": num_updates, "caution": told})
    else:
        typer.echo(f"version {chosen.version} → {out} ({to.value})")


@contextmanager
def _opened(state: Path) -> "Iterator[tuple[Journal, VersionStore]]":
    """A state folder with at least one version, without its lock.

    Raises:
        StateError: It is no coordinator's.
        UnknownVersion: It holds no version yet.
    """
    from coordinator.errors import UnknownVersion
    from coordinator.journal import Journal
    from coordinator.versions import VersionStore

    with closing(Journal(state)) as journal:
        versions = VersionStore(state, journal)
        if versions.current() is None:
            raise UnknownVersion(f"{state}: holds no version yet; `tunefleet serve` makes the first")
        yield journal, versions


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        from edge.errors import ConfigError

        raise ConfigError(f"--rank is {text!r}, expected numbers such as 8 or 8,4") from error


def _report(read: "Callable[[], object]", watch: bool) -> None:
    """Prints a report as JSON, with `watch` again whenever it has changed."""
    import msgspec

    if watch:
        from coordinator.screen import watch_lines

        watch_lines(lambda: msgspec.json.encode(read()).decode())
    else:
        _print_json(read())


def _show(look: "Callable[[], Callable[[int], RenderableType]]", watch: bool) -> None:
    """Prints a report for people, with `watch` until Ctrl-C."""
    from coordinator import screen

    if watch:
        screen.watch(look)
    else:
        screen.show(look())


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _print_json(report: object) -> None:
    import msgspec

    typer.echo(msgspec.json.encode(report))
