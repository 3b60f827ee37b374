"""The command `tunefleet join`: a device in a fleet, until it is told to stop."""

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

from typer import Context, Option

from converters.command import Command, EventOptions, SettingsOptions, examples
from edge.transport import options

if TYPE_CHECKING:
    from edge.device.config import DeviceConfig

EXAMPLES = examples(
    "tunefleet join --broker mqtt://HOST --fleet home --device-id laptop \\",
    "  --base Qwen/Qwen3-0.6B --data chats.jsonl --state laptop",
    "tunefleet join --config device.toml --wait",
)
FLEET, DATA, MACHINE, ENDING = "Fleet", "Model and data", "This device", "Waiting and ending"
PLACES = {  # in the settings, of options that bear another name there
    "data": "data.path",
    "prompt_column": "data.prompt_column",
    "completion_column": "data.completion_column",
    "rank": "max_rank",
    "wait": "waits_for_broker",
}
_fleet, _data = partial(Option, rich_help_panel=FLEET), partial(Option, rich_help_panel=DATA)
_machine, _ending = partial(Option, rich_help_panel=MACHINE), partial(Option, rich_help_panel=ENDING)


class FleetOptions(NamedTuple):
    """Which fleet is joined, as which device."""

    fleet: Annotated[
        str | None, _fleet(metavar="NAME", help="The fleet's name, as `serve` has it. Required.")
    ] = None
    broker: options.Url = None
    device_id: Annotated[
        str | None, _fleet(metavar="NAME", help="This device's name in the fleet. Required.")
    ] = None
    coordinator_key: Annotated[
        str | None,
        _fleet(
            metavar="HEX",
            help="The coordinator's public key; without it the first key that is seen is trusted.",
        ),
    ] = None


class SourceOptions(NamedTuple):
    """What is trained, on what."""

    base: Annotated[
        str | None,
        _data(
            "--base",
            "--model",
            metavar="MODEL",
            help="The fleet's base model: a Hugging Face or MLX folder, a .gguf file, or a name on the "
            "hub. Required.",
        ),
    ] = None
    data: Annotated[
        str | None,
        _data(
            metavar="FILE",
            help="Examples to train on, which stay here: JSONL, a JSON array, CSV, Parquet, or a folder. "
            "Required.",
        ),
    ] = None
    prompt_column: Annotated[
        str | None, _data(metavar="NAME", help="The data's column of prompts, if not `prompt`.")
    ] = None
    completion_column: Annotated[
        str | None, _data(metavar="NAME", help="Its column of completions, if not `completion`.")
    ] = None
    fingerprint: Annotated[
        str | None,
        _data(
            metavar="HEX",
            help="Of the model that a quantised base was made from, where you know it: it is then "
            "believed, and not proved.",
        ),
    ] = None


class DeviceOptions(NamedTuple):
    """How this device trains."""

    state: Annotated[
        str | None,
        _machine(
            metavar="FOLDER",
            help="Where this device keeps its key, its task and its updates; for it alone. Required.",
        ),
    ] = None
    backend: Annotated[
        str | None,
        _machine(
            metavar="NAME",
            help="What trains: torch, mlx, llama_cpp (for .gguf files), toy, or auto, which fits the model.",
        ),
    ] = None
    precision: Annotated[
        str | None, _machine(metavar="NAME", help="What the model computes in: float32, bfloat16, or auto.")
    ] = None
    rank: Annotated[
        int | None,
        _machine(
            metavar="N",
            min=1,
            help="The largest rank that this device trains, of those that the fleet offers.",
        ),
    ] = None
    slowdown: Annotated[
        float | None,
        _machine(metavar="X", min=1, help="Take X times as long for every step, to play a slower device."),
    ] = None


class EndingOptions(NamedTuple):
    """How long the device goes on."""

    max_tasks: Annotated[
        int | None,
        _ending(metavar="N", min=0, help="End when N tasks have been trained and received; 0 never ends."),
    ] = None
    patience_s: Annotated[
        float | None, _ending(metavar="S", min=0.001, help="Ask again when nothing has come for S seconds.")
    ] = None


class JoinCommand(Command):
    """`tunefleet join`, which shows the defaults of `edge.device.config`."""

    places = PLACES

    def defaults(self) -> Mapping[str, Any]:
        """See `Command.defaults`."""
        from edge.device.config import DeviceConfig
        from edge.settings import defaults_of

        return defaults_of(DeviceConfig, (param.name or "" for param in self.params), self.places)


def join(
    context: Context,
    fleet: FleetOptions,
    data: SourceOptions,
    machine: DeviceOptions,
    ending: EndingOptions,
    wait: options.Wait = False,
    *,
    connection: options.BrokerOptions,
    file: SettingsOptions,
    telling: EventOptions,
) -> None:
    """Trains for a fleet with data that stays on this device."""
    import msgspec

    from edge.device.config import read_config
    from edge.settings import placed, write_toml

    given = fleet._asdict() | data._asdict() | machine._asdict() | ending._asdict()
    settings = read_config(file.config, placed(given | {"wait": wait, **connection._asdict()}, PLACES))
    if file.print_config:
        sys.stdout.write(write_toml(settings))
        return
    from converters.bases.read import find_base

    settings = msgspec.structs.replace(settings, base=str(find_base(settings.base)))
    _check_data(settings, telling)
    flags = ["--log-level", telling.log_level, *(["--json"] if telling.as_json else [])]
    flags += ["--verbose"] if context.find_root().params.get("verbose") else []
    _become_client(msgspec.json.encode(settings), flags)


def _check_data(settings: "DeviceConfig", telling: EventOptions) -> None:
    """Tells what is wrong with the data before the broker or the model is waited for."""
    from edge.backends.tokenizer import load_tokenizer
    from edge.events import Event, shown
    from edge.training.data.check import check_source

    checked = check_source(settings.data, lambda: load_tokenizer(Path(settings.base)))
    with shown(telling.as_json, log_level=telling.log_level) as show:
        show(Event("checked", str(checked), checked._asdict()))


def _become_client(settings: bytes, flags: list[str]) -> NoReturn:
    """Goes on as `edge.device.process`, under the same process id."""
    read_end, write_end = os.pipe()
    os.write(write_end, settings)  # far less than a pipe holds
    os.close(write_end)
    os.dup2(read_end, 0)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "edge.device.process", *flags])  # noqa: S606 - no shell wanted
