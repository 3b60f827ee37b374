"""The command `tunefleet serve`: its options, and how they go above a settings file.

One function has all options, as typer reads a command from a signature. Heavy imports happen when it runs.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from converters.command import OUTPUT, SETTINGS, Command, LogLevel, LogLevelOption, examples
from edge.transport import options

EXAMPLES = examples(
    "tunefleet serve --broker mqtt://HOST --fleet home --base Qwen/Qwen3-0.6B \\",
    "  --state coordinator --calibration held-out.jsonl",
    "tunefleet serve --config fleet.toml --wait",
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


def serve(
    fleet: Annotated[
        str | None,
        Option(
            metavar="NAME",
            rich_help_panel=FLEET,
            help="The fleet's name: a-z, 0-9 and -. Required.",
        ),
    ] = None,
    broker: options.Url = None,
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
        from coordinator.initial_adapter import settle_folder

        typer.echo(config_text(settle_folder(settings)), nl=False)
        return
    from coordinator.serve import serve_fleet
    from edge.events import Event, shown
    from edge.transport.settings import has_password

    with shown(as_json, log_level=log_level.value, has_bars=False) as show:
        if broker and has_password(broker):
            show(Event("warning", SEEN_BY_ALL, {}))
        serve_fleet(settings, show)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        from edge.errors import ConfigError

        raise ConfigError(f"--rank is {text!r}, expected numbers such as 8 or 8,4") from error


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())
