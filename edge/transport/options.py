"""Options of a broker's connection, alike in every command that has one."""

from functools import partial
from typing import Annotated, NamedTuple

from typer import Option

FLEET, BROKER = "Fleet", "Broker"
_option = partial(Option, rich_help_panel=BROKER)

Url = Annotated[
    str | None,
    Option(
        metavar="URL",
        rich_help_panel=FLEET,
        help="mqtt://user:password@host:port, or mqtts:// for TLS; or TUNEFLEET_BROKER. Required.",
    ),
]
Wait = Annotated[bool, _option("--wait", help="Wait for a broker that is not there yet.")]


class BrokerOptions(NamedTuple):
    """How the broker is spoken to."""

    broker_user: Annotated[
        str | None,
        _option(
            metavar="NAME", help="The user at the broker, if the URL names none; or TUNEFLEET_BROKER_USER."
        ),
    ] = None
    broker_password_file: Annotated[
        str | None,
        _option(
            metavar="FILE",
            help="A file whose first line is the password; or TUNEFLEET_BROKER_PASSWORD_FILE. In a URL on "
            "the command line every user of this machine can read it.",
        ),
    ] = None
    protocol: Annotated[
        str | None, _option(metavar="NAME", help="The version of MQTT: auto, 5 or 3.1.1.")
    ] = None
    tls_ca: Annotated[
        str | None,
        _option(
            metavar="FILE",
            help="Certificates to check the broker against, PEM; without it the system's.",
        ),
    ] = None
    tls_cert: Annotated[
        str | None,
        _option(metavar="FILE", help="A certificate of one's own, PEM, where the broker asks for one."),
    ] = None
    tls_key: Annotated[str | None, _option(metavar="FILE", help="The private key of --tls-cert, PEM.")] = None
