"""The command `tunefleet join`: a device in a fleet, until it is told to stop."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

from typer import Option


def join(
    broker: Annotated[str | None, Option(help="mqtt://user:password@host:port, or mqtts://")] = None,
    fleet: Annotated[str | None, Option(help="the fleet's name")] = None,
    base: Annotated[str | None, Option(help="base model: a folder or a .gguf file")] = None,
    data: Annotated[str | None, Option(help="JSONL to train on; it stays here")] = None,
    device_id: Annotated[str | None, Option(help="this device's name in the fleet")] = None,
    state: Annotated[str | None, Option(help="folder of this client alone")] = None,
    prompt_column: Annotated[str | None, Option(help="column of the prompts in --data")] = None,
    completion_column: Annotated[str | None, Option(help="column of the completions in --data")] = None,
    backend: Annotated[str | None, Option(help="what trains: auto, torch, mlx, llama_cpp or toy")] = None,
    precision: Annotated[str | None, Option(help="auto, float32 or bfloat16")] = None,
    rank: Annotated[int | None, Option(help="largest rank that this device trains")] = None,
    slowdown: Annotated[float | None, Option(help="plays a device this many times slower")] = None,
    max_tasks: Annotated[int | None, Option(help="ends after so many receipted tasks; 0 never")] = None,
    patience_s: Annotated[float | None, Option(help="seconds until a request is repeated")] = None,
    coordinator_key: Annotated[str | None, Option(help="instead of the first key seen")] = None,
    fingerprint: Annotated[str | None, Option(help="of what a quantised base was made from")] = None,
    protocol: Annotated[str | None, Option(help="version of MQTT: auto, 5 or 3.1.1")] = None,
    tls_ca: Annotated[str | None, Option(help="certificates to check the broker against, PEM")] = None,
    tls_cert: Annotated[str | None, Option(help="this device's certificate, PEM")] = None,
    tls_key: Annotated[str | None, Option(help="private key of --tls-cert, PEM")] = None,
    wait: Annotated[bool, Option("--wait", help="wait for a broker that cannot be reached")] = False,
    config: Annotated[Path | None, Option(help="TOML with any of these, and more")] = None,
    print_config: Annotated[bool, Option("--print-config", help="print the settings as TOML")] = False,
    as_json: Annotated[bool, Option("--json", help="one JSON object a line")] = False,
) -> None:
    """Trains for a fleet with data that stays on this device."""
    import msgspec

    from edge.config import config_table, read_config

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
    _become_client(msgspec.json.encode(settings), ["--json"] if as_json else [])


def _become_client(settings: bytes, flags: list[str]) -> NoReturn:
    """Goes on as `edge.process`, under the same process id."""
    read_end, write_end = os.pipe()
    os.write(write_end, settings)  # far less than a pipe holds
    os.close(write_end)
    os.dup2(read_end, 0)
    os.execv(sys.executable, [sys.executable, "-m", "edge.process", *flags])  # noqa: S606 - no shell wanted


def _given(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}
