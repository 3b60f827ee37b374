"""The command `tunefleet enroll`: a device's key, and how it is let into a fleet."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from typer import Option

from converters.command import AsJson, examples
from converters.plain import plain_json

if TYPE_CHECKING:
    from edge.device.enrolling import Enrolled
    from edge.protocol.enrolment import Token

EXAMPLES = examples(
    "tunefleet enroll --state lamp --device-id lamp",
    "tunefleet enroll --state lamp --device-id lamp --token-file token.txt",
    "tunefleet enroll --state lamp --rotate",
)
MAX_CHARACTERS = 1 << 16  # of a file that holds a token
DEVICE, TOKEN, KEY = "This device", "Token", "Another key"


class DeviceOptions(NamedTuple):
    """Which device it is."""

    state: Annotated[
        Path,
        Option(
            metavar="FOLDER", rich_help_panel=DEVICE, help="Where this device keeps its key; for it alone."
        ),
    ]
    device_id: Annotated[
        str | None,
        Option(
            metavar="NAME", rich_help_panel=DEVICE, help="This device's name in the fleet, where it is new."
        ),
    ] = None
    fleet: Annotated[
        str | None, Option(metavar="NAME", rich_help_panel=DEVICE, help="The fleet's name; a token knows it.")
    ] = None


class TokenOptions(NamedTuple):
    """What lets it in."""

    token: Annotated[
        str | None,
        Option(
            metavar="TOKEN",
            rich_help_panel=TOKEN,
            help="What `tunefleet device token` has printed; every user of this machine can see it here.",
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        Option(metavar="FILE", rich_help_panel=TOKEN, help="A file that holds it, or - for stdin."),
    ] = None


class KeyOptions(NamedTuple):
    """Another key in the place of its own."""

    rotate: Annotated[
        bool, Option("--rotate", rich_help_panel=KEY, help="Make a new key, for which the old one signs.")
    ] = False
    out: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            rich_help_panel=KEY,
            help="Write its word there too, for `tunefleet device rotate`; `join` brings it by itself.",
        ),
    ] = None


def enroll(device: DeviceOptions, by: TokenOptions, key: KeyOptions, as_json: AsJson = False) -> None:
    """Makes this device's key, and shows what the fleet's owner has to know of it."""
    import msgspec

    from edge.device import enrolling
    from edge.errors import ConfigError
    from edge.storage.disk import write_file

    if key.rotate and (by.token or by.token_file):
        raise ConfigError("enroll: --rotate goes without a token; the old key lets the new one in")
    if key.out and not key.rotate:
        raise ConfigError("enroll: --out goes with --rotate")
    if key.rotate:
        report, word = enrolling.rotate(*device)
        if key.out:
            write_file(key.out, msgspec.json.encode(word))
    else:
        report = enrolling.enroll(*device, _token(*by))
    as_line = plain_json(msgspec.json.encode(report).decode())
    typer.echo(as_line if as_json else _told(report, device.state))


def _told(report: "Enrolled", state: Path) -> str:
    """Tells a person what to do next."""
    if report.num_rotations:
        return f"{report.device} has a new key, which `join` tells the coordinator:\n{report.key}"
    if report.coordinator_key:
        return (
            f"{report.device} {report.key}\nlet in by its token when it joins fleet {report.fleet}:\n"
            f"  tunefleet join --fleet {report.fleet} --device-id {report.device} --state {state} …"
        )
    return (
        f"{report.device} {report.key}\nthe fleet's owner lets it in:\n"
        f"  tunefleet device allow {report.device} {report.key} --state coordinator"
    )


def _token(token: str | None, file: Path | None) -> "Token | None":
    import sys

    from edge.errors import ConfigError
    from edge.protocol.enrolment import read_token

    if token and file:
        raise ConfigError("enroll: give --token or --token-file, not both")
    if file is None:
        return read_token(token) if token else None
    try:
        text = (
            sys.stdin.read(MAX_CHARACTERS) if str(file) == "-" else file.read_text("utf-8")[:MAX_CHARACTERS]
        )
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"{file}: the token cannot be read: {reason}") from error
    return read_token(text)
