"""What `tunefleet enroll` leaves in a device's state folder for `tunefleet join`: whom to trust, and a claim.

`enrolment.json` stays until the coordinator has said that the device is in; its claim is of use to nobody but
this device's key.
"""

from pathlib import Path

import msgspec

from edge.errors import StateError
from edge.protocol.enrolment import Claim
from edge.protocol.messages import Id, Record, Sha256
from edge.storage.disk import room_for, write_file

FILE = "enrolment.json"


class Enrolment(Record, frozen=True, kw_only=True):
    """Content of `enrolment.json`."""

    format: int = 1
    fleet: Id
    device_id: Id
    coordinator: Sha256  # public key, to be trusted and no other
    claim: Claim


def read_enrolment(folder: Path) -> Enrolment | None:
    """Returns what waits to be told to the coordinator; None where nothing does.

    Raises:
        StateError: It is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Enrolment)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StateError(f"{path}: is damaged: {error}; remove it and enroll again") from error


def save_enrolment(folder: Path, enrolment: Enrolment) -> None:
    """Keeps what is to be told.

    Raises:
        DiskRefused: Nothing changed.
    """
    write_file(folder / FILE, msgspec.json.format(msgspec.json.encode(enrolment), indent=2) + b"\n")


def drop_enrolment(folder: Path) -> None:
    """Forgets what was told.

    Raises:
        DiskRefused: It is told once more at the next start.
    """
    with room_for("to be tidied", folder):
        (folder / FILE).unlink(missing_ok=True)
