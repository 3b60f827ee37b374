"""The command `tunefleet certs`: certificates for a private fleet, without any authority outside."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from converters.command import AsJson, examples
from converters.plain import plain_json

if TYPE_CHECKING:
    from coordinator.access.certificates import Certificates, Issued

EXAMPLES = examples(
    "tunefleet certs certs --fleet home --host broker.lan --device lamp",
    "tunefleet certs certs --device phone",
    "tunefleet certs certs --revoke lamp",
)
FLEET, WHOM = "Fleet", "Certificates"


def certs(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="Where they lie; keep it to yourself.")],
    fleet: Annotated[
        str | None,
        Option(metavar="NAME", rich_help_panel=FLEET, help="The fleet's name; the first time only."),
    ] = None,
    host: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            rich_help_panel=WHOM,
            help="The broker's name or address, as devices reach it; may be given again. The first time, and "
            "where it has changed.",
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        Option(metavar="ID", rich_help_panel=WHOM, help="A device that gets one; may be given again."),
    ] = None,
    coordinator: Annotated[
        bool, Option("--coordinator", rich_help_panel=WHOM, help="Make the coordinator's anew.")
    ] = False,
    revoke: Annotated[
        list[str] | None,
        Option(
            metavar="ID",
            rich_help_panel=WHOM,
            help="Take back a device's; the broker must read its list of revoked ones again.",
        ),
    ] = None,
    days: Annotated[
        int, Option(metavar="N", min=1, max=3650, rich_help_panel=WHOM, help="How long new ones hold.")
    ] = 730,
    as_json: AsJson = False,
) -> None:
    """Makes certificates for the broker, the coordinator and devices, and takes them back."""
    import time

    from coordinator.access.certificates import Certificates, Wanted, make

    wanted = Wanted(
        hosts=tuple(host or ()), devices=tuple(device or ()), revoked=tuple(revoke or ()),
        has_coordinator=coordinator, days=days,
    )  # fmt: skip
    wanted.check(fleet)
    certificates = Certificates(folder, fleet, time.time())
    is_first = not certificates.issued
    made, num_revoked = make(certificates, wanted)
    if as_json:
        _print_json(certificates, made, num_revoked)
    else:
        _tell(certificates, made, num_revoked, is_first)


def _tell(
    certificates: "Certificates", made: "list[Issued]", num_revoked: dict[str, int], is_first: bool
) -> None:
    for name, number in num_revoked.items():
        typer.echo(f"{name}: {number} certificate{'' if number == 1 else 's'} taken back")
    for one in made:
        typer.echo(f"{one.name} → {certificates.place(one)}")
    if num_revoked:
        typer.echo("the broker has to read its lists again: broker/devices-ca.crl, broker/coordinator-ca.crl")
    if is_first:
        typer.echo("copy each folder to its machine; private/ stays here, and nobody else reads it")


def _print_json(certificates: "Certificates", made: "list[Issued]", num_revoked: dict[str, int]) -> None:
    import msgspec

    report = {
        "fleet": certificates.fleet,
        "made": [
            {"name": one.name, "serial": one.serial, "folder": str(certificates.place(one))} for one in made
        ],
        "num_revoked": num_revoked,
    }
    typer.echo(plain_json(msgspec.json.encode(report).decode()))
