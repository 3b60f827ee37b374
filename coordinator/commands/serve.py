"""The command `tunefleet serve`: its options go above a settings file; heavy imports happen when it runs."""

from collections.abc import Mapping
from typing import Any

import typer

from converters.command import Command, EventOptions, SettingsOptions, examples
from coordinator.commands.options import (
    AdapterOptions,
    DeviceOptions,
    FleetOptions,
    MergingOptions,
    ScoreOptions,
    TaskOptions,
)
from edge.transport.options import BrokerOptions, Wait

EXAMPLES = examples(
    "tunefleet serve --broker mqtt://HOST --fleet home --base Qwen/Qwen3-0.6B \\",
    "  --state coordinator --calibration held-out.jsonl",
    "tunefleet serve --config fleet.toml --wait",
)
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
        from coordinator.config import RANKS, CoordinatorConfig
        from edge.choices import SCALE, TARGETS
        from edge.settings import defaults_of

        found = defaults_of(CoordinatorConfig, (param.name or "" for param in self.params), self.places)
        found |= {"rank": RANKS, "scale": SCALE, "targets": TARGETS}
        return {
            name: ",".join(map(str, value)) if isinstance(value, tuple) else value
            for name, value in found.items()
        }


def serve(
    fleet: FleetOptions,
    adapter: AdapterOptions,
    merging: MergingOptions,
    training: TaskOptions,
    scores: ScoreOptions,
    devices: DeviceOptions,
    wait: Wait = False,
    *,
    connection: BrokerOptions,
    file: SettingsOptions,
    telling: EventOptions,
) -> None:
    """Runs the coordinator, which merges what devices learn into version after version."""
    from coordinator.config import config_text, read_config
    from edge.settings import placed

    options = fleet._asdict() | adapter._asdict() | merging._asdict() | training._asdict() | scores._asdict()
    options |= {"wait": wait, **devices._asdict(), **connection._asdict()}
    options |= {"rank": _numbers(adapter.rank), "targets": _names(adapter.targets)}
    settings = read_config(file.config, placed(options, PLACES))
    if file.print_config:
        from coordinator.initial_adapter import settle_folder

        typer.echo(config_text(settle_folder(settings)), nl=False)
        return
    from coordinator.serve import serve_fleet
    from edge.events import Event, shown
    from edge.transport.settings import has_password

    with shown(telling.as_json, log_level=telling.log_level, has_bars=False) as show:
        if fleet.broker and has_password(fleet.broker):
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
