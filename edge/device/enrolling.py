"""A device's key and its token, before it joins: what `tunefleet enroll` does in the state folder."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from edge.errors import ConfigError, StateError
from edge.protocol.enrolment import Enrol, Token, make_claim
from edge.protocol.messages import is_id
from edge.protocol.signing import public_key
from edge.storage.disk import claim_folder
from edge.storage.enrolment import Enrolment, read_enrolment, save_enrolment
from edge.storage.identity import read_identity, rotate_identity

ADVICE = "restore it, or enroll as a new device"


class Enrolled(Struct, frozen=True):
    """What `enroll --json` prints."""

    device: str
    key: str  # public
    fleet: str | None  # None: nothing says it yet
    coordinator_key: str | None  # that the device trusts from now on
    expires: int | None  # of the token, Unix time
    num_rotations: int  # keys that are told to have been before


class _Owner(Struct):
    """Of `state.json`, whose device and fleet it is."""

    fleet: str
    device_id: str


def enroll(folder: Path, device_id: str | None, fleet: str | None, token: Token | None) -> Enrolled:
    """Makes a device's key where there is none, and keeps its claim to the token.

    Args:
        folder: The device's state folder.
        device_id: The device's id; None takes that of the folder, or of the token.
        fleet: The fleet's name; None takes that of the token.
        token: Lets it in; None leaves that to the fleet's owner.

    Raises:
        ConfigError: The device has no name, or the token is for another or has ended.
        StateError: A client runs in this folder, or it is another device's.
        DiskRefused: Nothing was kept.
    """
    with _claimed(folder) as owner:
        grant = token.grant if token else None
        name = device_id or (grant and grant.device_id) or (owner.device_id if owner else None)
        faults = list(_faults(name, fleet, owner))
        if grant and name and grant.device_id not in (None, name):
            faults.append(f"the token is for {grant.device_id}, not for {name}")
        if grant and fleet not in (None, grant.fleet):
            faults.append(f"the token is of fleet {grant.fleet}, not of {fleet}")
        if grant and grant.expires < time.time():
            faults.append("the token has ended; ask for another one")
        if grant and owner and owner.fleet != grant.fleet:
            faults.append(
                f"{folder} is of fleet {owner.fleet}, the token of {grant.fleet}; give another --state"
            )
        if faults or name is None:
            raise ConfigError.of("enroll", faults)
        key = public_key(read_identity(folder, ADVICE))
        if token and grant:
            claim = make_claim(token, name, key)
            save_enrolment(
                folder,
                Enrolment(fleet=grant.fleet, device_id=name, coordinator=grant.coordinator, claim=claim),
            )
    return Enrolled(
        device=name,
        key=key,
        fleet=grant.fleet if grant else fleet,
        coordinator_key=grant.coordinator if grant else None,
        expires=grant.expires if grant else None,
        num_rotations=0,
    )


def rotate(folder: Path, device_id: str | None, fleet: str | None) -> tuple[Enrolled, Enrol]:
    """Gives a device a new key that its old one has signed for; `join` tells the coordinator.

    Args:
        folder: The device's state folder.
        device_id: The device's id; None takes that of the folder.
        fleet: The fleet's name; None takes that of the folder.

    Raises:
        ConfigError: Nothing says whose folder it is.
        StateError: A client runs in this folder, or it is another device's, or holds no key.
        DiskRefused: The key is the old one.
    """
    with _claimed(folder) as owner:
        name, home = device_id or (owner and owner.device_id), fleet or (owner and owner.fleet)
        faults = list(_faults(name or None, home or None, owner))
        if not home:
            faults.append("this folder has not joined a fleet yet; say which --fleet")
        if read_enrolment(folder):
            faults.append("its token waits to be told to the coordinator; join first")
        if faults or not name or not home:
            raise ConfigError.of("enroll", faults)
        rotations = rotate_identity(folder, home, name, ADVICE)
    report = Enrolled(
        device=name,
        key=rotations[-1].new,
        fleet=home,
        coordinator_key=None,
        expires=None,
        num_rotations=len(rotations),
    )
    return report, Enrol(rotations=rotations)


def _faults(device_id: str | None, fleet: str | None, owner: _Owner | None) -> Iterator[str]:
    if device_id is None:
        yield "say which --device-id this device has"
    for what, name in (("--device-id", device_id), ("--fleet", fleet)):
        if name is not None and not is_id(name):
            yield f"{what} is {name!r}, expected 1 to 64 of a-z, 0-9 and -"
    if owner and device_id not in (None, owner.device_id):
        yield f"this folder is of {owner.device_id}, not of {device_id}; give another --state"


@contextmanager
def _claimed(folder: Path) -> Iterator[_Owner | None]:
    """Holds a device's state folder, and tells whose it is; None where it is new."""
    with claim_folder(folder, (folder,), "client"):
        path = folder / "state.json"
        if (folder / "journal.sqlite").exists():
            raise StateError(f"{folder}: is a coordinator's state folder; give the device its own --state")
        try:
            yield msgspec.json.decode(path.read_bytes(), type=_Owner) if path.exists() else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise StateError(f"{path}: is damaged: {error}; restore it, or give another --state") from error
