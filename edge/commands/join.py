"""The command `tunefleet join`: a device in a fleet, until it is told to stop."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from typer import Context, Option

from converters.command import OUTPUT, SETTINGS, Command, LogLevel, LogLevelOption, examples
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
    fleet: Annotated[
        str | None,
        Option(metavar="NAME", rich_help_panel=FLEET, help="The fleet's name, as `serve` has it. Required."),
    ] = None,
    broker: options.Url = None,
    device_id: Annotated[
        str | None,
        Option(metavar="NAME", rich_help_panel=FLEET, help="This device's name in the fleet. Required."),
    ] = None,
    coordinator_key: Annotated[
        str | None,
        Option(
            metavar="HEX",
            rich_help_panel=FLEET,
            help="The coordinator's public key; without it the first key that is seen is trusted.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        Option(
            "--base",
            "--model",
            metavar="MODEL",
            rich_help_panel=DATA,
            help="The fleet's base model: a Hugging Face or MLX folder, a .gguf file, or a name on the hub. "
            "Required.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        Option(
            metavar="FILE",
            rich_help_panel=DATA,
            help="Examples to train on, which stay here: JSONL, a JSON array, CSV, Parquet, or a folder. "
            "Required.",
        ),
    ] = None,
    prompt_column: Annotated[
        str | None,
        Option(metavar="NAME", rich_help_panel=DATA, help="The data's column of prompts, if not `prompt`."),
    ] = None,
    completion_column: Annotated[
        str | None,
        Option(metavar="NAME", rich_help_panel=DATA, help="Its column of completions, if not `completion`."),
    ] = None,
    fingerprint: Annotated[
        str | None,
        Option(
            metavar="HEX",
            rich_help_panel=DATA,
            help="Of the model that a quantised base was made from, where you know it: it is then believed, "
            "and not proved.",
        ),
    ] = None,
    state: Annotated[
        str | None,
        Option(
            metavar="FOLDER",
            rich_help_panel=MACHINE,
            help="Where this device keeps its key, its task and its updates; for it alone. Required.",
        ),
    ] = None,
    backend: Annotated[
        str | None,
        Option(
            metavar="NAME",
            rich_help_panel=MACHINE,
            help="What trains: torch, mlx, llama_cpp (for .gguf files), toy, or auto, which fits the model.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        Option(
            metavar="NAME",
            rich_help_panel=MACHINE,
            help="What the model computes in: float32, bfloat16, or auto.",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        Option(
            metavar="N",
            min=1,
            rich_help_panel=MACHINE,
            help="The largest rank that this device trains, of those that the fleet offers.",
        ),
    ] = None,
    slowdown: Annotated[
        float | None,
        Option(
            metavar="X",
            min=1,
            rich_help_panel=MACHINE,
            help="Take X times as long for every step, to play a slower device.",
        ),
    ] = None,
    max_tasks: Annotated[
        int | None,
        Option(
            metavar="N",
            min=0,
            rich_help_panel=ENDING,
            help="End when N tasks have been trained and received; 0 never ends.",
        ),
    ] = None,
    patience_s: Annotated[
        float | None,
        Option(
            metavar="S",
            min=0.001,
            rich_help_panel=ENDING,
            help="Ask again when nothing has come for S seconds.",
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
        Option("--print-config", rich_help_panel=SETTINGS, help="Print all settings as TOML and end."),
    ] = False,
    log_level: LogLevelOption = LogLevel.info,
    as_json: Annotated[
        bool,
        Option("--json", rich_help_panel=OUTPUT, help="Print each event as one JSON object a line."),
    ] = False,
) -> None:
    """Trains for a fleet with data that stays on this device."""
    import msgspec

    from edge.device.config import config_table, read_config

    overrides: dict[str, Any] = {
        "broker": broker,
        "fleet": fleet,
        "base": base,
        "data": _given(path=data, prompt_column=prompt_column, completion_column=completion_column),
        "device_id": device_id,
        "state": state,
        "backend": backend,
        "precision": precision,
        "max_rank": rank,
        "slowdown": slowdown,
        "max_tasks": max_tasks,
        "patience_s": patience_s,
        "coordinator_key": coordinator_key,
        "fingerprint": fingerprint,
        "broker_user": broker_user,
        "broker_password_file": broker_password_file,
        "protocol": protocol,
        "tls_ca": tls_ca,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "waits_for_broker": wait or None,
    }
    settings = read_config(config, overrides)
    if print_config:
        import tomli_w

        sys.stdout.write(tomli_w.dumps(config_table(settings)))
        return
    from converters.bases.hub import find_base

    settings = msgspec.structs.replace(settings, base=str(find_base(settings.base)))
    _check_data(settings, as_json, log_level)
    flags = ["--log-level", log_level.value, *(["--json"] if as_json else [])]
    flags += ["--verbose"] if context.find_root().params.get("verbose") else []
    _become_client(msgspec.json.encode(settings), flags)


def _check_data(settings: "DeviceConfig", as_json: bool, log_level: LogLevel) -> None:
    """Tells what is wrong with the data before the broker or the model is waited for."""
    from edge.backends.tokenizer import load_tokenizer
    from edge.events import Event, shown
    from edge.training.data.check import check_source

    checked = check_source(settings.data, lambda: load_tokenizer(Path(settings.base)))
    with shown(as_json, log_level=log_level.value) as show:
        show(Event("checked", str(checked), checked._asdict()))


def _become_client(settings: bytes, flags: list[str]) -> NoReturn:
    """Goes on as `edge.device.process`, under the same process id."""
    read_end, write_end = os.pipe()
    os.write(write_end, settings)  # far less than a pipe holds
    os.close(write_end)
    os.dup2(read_end, 0)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "edge.device.process", *flags])  # noqa: S606 - no shell wanted


def _given(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}
