"""The command `tunefleet watch`; heavy imports happen when it runs."""

import sys
from typing import Annotated

from typer import Option

from converters.command import OUTPUT, examples
from edge.transport import options

EXAMPLES = examples(
    "tunefleet watch --broker mqtt://HOST --fleet home",
    "tunefleet watch --broker mqtt://HOST --fleet home --json | grep rejected",
)
FLEET = "Fleet"


def watch(
    broker: options.Url = None,
    fleet: Annotated[
        str | None,
        Option(metavar="NAME", rich_help_panel=FLEET, help="The fleet's name; without it all fleets."),
    ] = None,
    *,
    connection: options.BrokerOptions,
    as_json: Annotated[
        bool, Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object a line, nothing cut.")
    ] = False,
) -> None:
    """Shows what coordinator and devices say to each other, one line each; takes no part in it."""
    import asyncio

    from coordinator.watch import run, show
    from coordinator.watch.settings import mqtt_settings, read_config
    from edge.transport.mqtt.transport import MqttTransport

    settings = mqtt_settings(read_config({"broker": broker, "fleet": fleet, **connection._asdict()}))
    run.end_with_the_terminal()
    out = run.open_output()
    way = show.as_json if as_json else show.lines(out.width, names_fleet=fleet is None)
    sys.stderr.write(
        f"watching {fleet or 'all fleets'} on {settings.place} (~: kept there, from before); Ctrl-C ends\n"
    )
    asyncio.run(run.watch(MqttTransport(settings), fleet or run.ANY, way, out.say))
