"""The command `tunefleet broker-config`: what a broker needs to hold everybody to their own topics."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from converters.command import AsJson, examples
from converters.plain import plain_json
from coordinator.access.kinds import BrokerKind

EXAMPLES = examples(
    "tunefleet broker-config mosquitto --fleet home --certs certs --out broker",
    "tunefleet broker-config nats --certs certs --out broker --port 8883",
    "tunefleet broker-config aws-iot --fleet home --out policies",
)
FLEET, BROKER = "Fleet", "Broker"


def broker_config(
    kind: Annotated[
        BrokerKind, Argument(metavar="KIND", help="mosquitto, mosquitto-2.1, nats, emqx or aws-iot.")
    ],
    out: Annotated[
        Path, Option(metavar="FOLDER", rich_help_panel=BROKER, help="Where the files are written, also anew.")
    ],
    fleet: Annotated[
        str | None,
        Option(metavar="NAME", rich_help_panel=FLEET, help="The fleet's name; --certs knows it, too."),
    ] = None,
    certs: Annotated[
        Path | None,
        Option(
            metavar="FOLDER",
            rich_help_panel=FLEET,
            help="The folder of `tunefleet certs`; without it users have passwords.",
        ),
    ] = None,
    port: Annotated[
        int, Option(metavar="N", min=1, max=65535, rich_help_panel=BROKER, help="Where devices connect.")
    ] = 8883,
    coordinator_port: Annotated[
        int | None,
        Option(
            metavar="N",
            min=1,
            max=65535,
            rich_help_panel=BROKER,
            help="Where the coordinator connects, with certificates at Mosquitto and EMQX; the next one.",
        ),
    ] = None,
    max_devices: Annotated[
        int,
        Option(metavar="N", min=1, rich_help_panel=BROKER, help="Connections of devices at a time, at most."),
    ] = 1000,
    as_json: AsJson = False,
) -> None:
    """Writes a broker's configuration and its rules: each device its own topics, and no others."""
    import time

    from coordinator.access.writing import broker_files, broker_plan, write_files

    plan = broker_plan(
        fleet, certs, port=port, coordinator_port=coordinator_port, max_devices=max_devices, at=time.time()
    )
    files = broker_files(kind, plan, out)
    write_files(out, files)
    if as_json:
        import msgspec

        report = {"kind": kind, "fleet": plan.fleet, "files": [str(out / name) for name in files]}
        typer.echo(plain_json(msgspec.json.encode(report).decode()))
        return
    for name in files:
        typer.echo(f"{out / name}")
