"""The commands `tunefleet device …`: who may take part, also while the coordinator runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from converters.command import AsJson, Command, examples
from converters.plain import plain_json

if TYPE_CHECKING:
    from coordinator.ledger.contract import Journal

LIST = examples(
    "tunefleet device list --state coordinator", "tunefleet device list --state coordinator --json"
)
ALLOW = examples(
    "tunefleet device allow lamp 3fa9…c0de --state coordinator",
    "tunefleet device allow --from devices.txt --state coordinator",
)
BAN = examples(
    "tunefleet device ban lamp --state coordinator",
    "tunefleet device ban lamp --state coordinator --keep-updates",
)
UNBAN = examples(
    "tunefleet device unban lamp --state coordinator",
    "tunefleet device unban lamp --state coordinator --json",
)
FORGET = examples(
    "tunefleet device forget lamp --state coordinator",
    "tunefleet device forget lamp --state coordinator --json",
)
ROTATE = examples(
    "tunefleet device rotate lamp rotation.json --state coordinator",
    "tunefleet device rotate lamp rotation.json --state coordinator --json",
)
TOKEN = examples(
    "tunefleet device token --state coordinator",
    "tunefleet device token --state coordinator --for lamp --expires 1h",
    "tunefleet device token --state coordinator --uses 20 --expires 7d --json",
)
FLEET, TOKENS = "Fleet", "Token"

app = typer.Typer(
    name="device", help="Says which devices may take part, at once and for good.", no_args_is_help=True
)

State = Annotated[
    Path, Option(metavar="FOLDER", rich_help_panel=FLEET, help="The coordinator's --state folder.")
]
Device = Annotated[str, Argument(metavar="ID", help="The device's id.")]


@app.command("list", cls=Command, epilog=LIST)
def list_devices(state: State, as_json: AsJson = False) -> None:
    """Shows every device that came or was let in, with its key and how it got in."""
    from coordinator.observers.access import device_access

    with _opened(state) as journal:
        found = device_access(journal)
    if as_json:
        _print_json(found)
        return
    from coordinator.observers.tables import access_view, show

    show(lambda width: access_view(width, devices=found))


@app.command(cls=Command, epilog=ALLOW)
def allow(
    state: State,
    device: Annotated[str | None, Argument(metavar="[ID", help="The device's id.")] = None,
    key: Annotated[
        str | None, Argument(metavar="KEY]", help="Its public key, as `tunefleet enroll` prints it.")
    ] = None,
    file: Annotated[
        Path | None,
        Option(
            "--from",
            metavar="FILE",
            rich_help_panel=FLEET,
            help="Let in the devices of a file: a line each, id and key.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Lets a device in, or many; nothing else is needed of them."""
    import time

    from coordinator.access.device_list import device_faults, read_device_list
    from edge.errors import ConfigError

    if (file is None) == (device is None) or (device is None) != (key is None):
        raise ConfigError("say whom to let in: an id and its key, or --from FILE")
    devices = read_device_list(file) if file else {device or "": (key or "").lower()}
    if faults := [fault for one in devices.items() for fault in device_faults(*one)]:
        raise ConfigError.of("device allow", faults)
    with _opened(state) as journal:
        journal.access.allow(devices, time.time())
    if as_json:
        _print_json({"allowed": devices})
    elif len(devices) == 1:
        (name,) = devices
        typer.echo(f"{name} may take part now")
    else:
        typer.echo(f"{len(devices)} devices may take part now")


@app.command(cls=Command, epilog=BAN)
def ban(
    state: State,
    device: Device,
    keep_updates: Annotated[
        bool,
        Option(
            "--keep-updates",
            rich_help_panel=FLEET,
            help="Merge what it has sent and what waits; otherwise that is discarded.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Shuts a device out, and its key under any name; what it was sending is dropped."""
    import time

    with _opened(state) as journal:
        known = _checked(device, journal)
        num_discarded = journal.access.ban(device, time.time(), keep_updates)
    if as_json:
        _print_json({"device": device, "was_known": known, "num_discarded": num_discarded})
        return
    never = "" if known else f"; no {device} was ever here"
    what = f"; {num_discarded} of its updates were discarded" if num_discarded else ""
    typer.echo(f"{device} is banned{what}{never}")


@app.command(cls=Command, epilog=UNBAN)
def unban(state: State, device: Device, as_json: AsJson = False) -> None:
    """Lets a banned device in again, as it was before."""
    with _opened(state) as journal:
        was_banned = journal.access.unban(device)
    if as_json:
        _print_json({"device": device, "was_banned": was_banned})
    else:
        typer.echo(f"{device} is banned no longer" if was_banned else f"{device} was not banned")


@app.command(cls=Command, epilog=FORGET)
def forget(state: State, device: Device, as_json: AsJson = False) -> None:
    """Takes a device out, with its key; its part in the versions and in their history stays."""
    with _opened(state) as journal:
        was_known = journal.access.forget(device)
    if as_json:
        _print_json({"device": device, "was_known": was_known})
    else:
        typer.echo(f"{device} is forgotten" if was_known else f"no {device} was ever here")


@app.command(cls=Command, epilog=ROTATE)
def rotate(
    state: State,
    device: Device,
    file: Annotated[
        Path, Argument(metavar="FILE", help="What `tunefleet enroll --rotate --out FILE` wrote there.")
    ],
    as_json: AsJson = False,
) -> None:
    """Gives a device the key that its old key has signed for, where it cannot say so itself."""
    from coordinator.access.rotating import read_rotations, rotate_key

    rotations = read_rotations(file)
    with _opened(state) as journal:
        key = rotate_key(journal, device, rotations)
    if as_json:
        _print_json({"device": device, "key": key})
    else:
        typer.echo(f"{device} has key {key} now")


@app.command(cls=Command, epilog=TOKEN)
def token(
    state: State,
    device: Annotated[
        str | None,
        Option("--for", metavar="ID", rich_help_panel=TOKENS, help="The only device that it lets in."),
    ] = None,
    uses: Annotated[
        int,
        Option(metavar="N", min=1, max=10_000, rich_help_panel=TOKENS, help="How many devices it lets in."),
    ] = 1,
    expires: Annotated[
        str,
        Option(metavar="TIME", rich_help_panel=TOKENS, help="When it ends: 30m, 24h or 7d from now."),
    ] = "24h",
    as_json: AsJson = False,
) -> None:
    """Makes a token that lets a device in, and tells it which coordinator to trust."""
    import time

    from coordinator.access.tokens import new_token, token_report
    from edge.protocol.enrolment import write_token

    with _opened(state) as journal:
        made = new_token(state, journal, uses=uses, expires=expires, device_id=device, at=time.time())
    if as_json:
        _print_json(token_report(made))
    else:
        typer.echo(write_token(made))


@contextmanager
def _opened(state: Path) -> "Iterator[Journal]":
    """Opens the journal of a state folder, without its lock.

    Raises:
        StateError: It is no coordinator's.
    """
    from coordinator.ledger.state import open_ledger

    with open_ledger(state) as (journal, _):
        yield journal


def _checked(device: str, journal: "Journal") -> bool:
    """Tells whether a device is known.

    Raises:
        ConfigError: It could be none.
    """
    from coordinator.access.device_list import device_faults
    from edge.errors import ConfigError

    if faults := list(device_faults(device, "0" * 64)):
        raise ConfigError.of("device ban", faults)
    known = any(one.device == device for one in journal.devices())
    return known or journal.access.find(device) is not None


def _print_json(report: object) -> None:
    import msgspec

    typer.echo(plain_json(msgspec.json.encode(report).decode()))
