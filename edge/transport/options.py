"""Options of a broker's connection, alike in every command that has one."""

from typing import Annotated

from typer import Option

FLEET, BROKER = "Fleet", "Broker"

Url = Annotated[
    str | None,
    Option(
        metavar="URL",
        rich_help_panel=FLEET,
        help="mqtt://user:password@host:port, or mqtts:// for TLS; or TUNEFLEET_BROKER. Required.",
    ),
]
Wait = Annotated[
    bool, Option("--wait", rich_help_panel=BROKER, help="Wait for a broker that is not there yet.")
]
User = Annotated[
    str | None,
    Option(
        metavar="NAME",
        rich_help_panel=BROKER,
        help="The user at the broker, if the URL names none; or TUNEFLEET_BROKER_USER.",
    ),
]
PasswordFile = Annotated[
    str | None,
    Option(
        metavar="FILE",
        rich_help_panel=BROKER,
        help="A file whose first line is the password; or TUNEFLEET_BROKER_PASSWORD_FILE. In a URL on the "
        "command line every user of this machine can read it.",
    ),
]
Protocol = Annotated[
    str | None,
    Option(metavar="NAME", rich_help_panel=BROKER, help="The version of MQTT: auto, 5 or 3.1.1."),
]
TlsCa = Annotated[
    str | None,
    Option(
        metavar="FILE",
        rich_help_panel=BROKER,
        help="Certificates to check the broker against, PEM; without it the system's.",
    ),
]
TlsCert = Annotated[
    str | None,
    Option(
        metavar="FILE",
        rich_help_panel=BROKER,
        help="A certificate of one's own, PEM, where the broker asks for one.",
    ),
]
TlsKey = Annotated[
    str | None,
    Option(metavar="FILE", rich_help_panel=BROKER, help="The private key of --tls-cert, PEM."),
]
