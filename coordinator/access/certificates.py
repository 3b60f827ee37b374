"""A fleet's certificates in a folder, laid out by the machine that each part is copied to.

    private/            the authorities' keys and what they have signed: keep it where nobody else reads it
    broker/             broker.crt, broker.key, devices-ca.crt, coordinator-ca.crt, and a .crl beside each
    coordinator/        tls.crt, tls.key, ca.crt
    devices/<id>/       tls.crt, tls.key, ca.crt

There are two authorities, for devices and for the coordinator: a broker that listens for both on ports of
their own can bind a device's client id to its certificate, and no device comes near the coordinator's.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct, structs

from coordinator.access.authority import Pair, Subject, issue, new_authority, revocation_list
from edge.errors import ConfigError, StateError
from edge.protocol.messages import Id, is_id
from edge.storage.disk import room_for, write_file, write_through

DAYS = 730
DEVICES, COORDINATOR = "devices", "coordinator"
_NAME = re.compile(r"[a-z0-9_-]{1,80}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9a-fA-F:]{2,39}")


class Issued(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One certificate that was made."""

    name: str
    authority: str  # `devices` or `coordinator`
    serial: str  # hex
    made_at: float  # Unix time
    revoked_at: float | None = None
    hosts: tuple[str, ...] = ()  # a broker's


class Issues(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Content of `private/issued.json`."""

    format: int = 1
    fleet: Id
    certificates: tuple[Issued, ...] = ()


def coordinator_name(fleet: str) -> str:
    """Returns the coordinator's user name at the broker; the _ keeps it from being any device's."""
    return f"{fleet}_coordinator"


class Certificates:
    """The certificates of one fleet.

    Args:
        folder: Theirs, made where it is missing.
        fleet: The fleet's name; None takes that of the folder.
        at: Unix time in seconds.

    Attributes:
        fleet: The fleet's name.
        issued: All that were made, in order.

    Raises:
        StateError: The folder is another fleet's, damaged, or holds something else.
        ConfigError: There is none yet, and no fleet to make it for.
        DiskRefused: There is no room.
    """

    def __init__(self, folder: Path, fleet: str | None, at: float) -> None:
        self.folder = folder
        self._at = at
        self._record = folder / "private" / "issued.json"
        if self._record.exists():
            issues = _read(self._record)
            if fleet not in (None, issues.fleet):
                raise StateError(
                    f"{folder}: is of fleet {issues.fleet}, expected {fleet}; give another folder"
                )
        elif fleet is None:
            raise ConfigError(f"{folder}: holds no certificates yet; say for which --fleet")
        elif folder.exists() and any(folder.iterdir()):
            raise StateError(f"{folder}: holds other things; give a folder of its own")
        else:
            issues = Issues(fleet=fleet)
        self.fleet, self.issued = issues.fleet, issues.certificates

    def found(self) -> None:
        """Makes the two authorities where they are missing."""
        for name in (DEVICES, COORDINATOR):
            if not self._key_of(name).exists():
                pair = new_authority(f"tunefleet {self.fleet} {name}", self._at)
                self._write(self._key_of(name), pair.key)
                self._write(self._record.parent / f"{name}-ca.crt", pair.certificate)
        self._note(self.issued)
        self._write_lists()

    def add_broker(self, hosts: Sequence[str], days: int) -> Issued:
        """Makes the broker's certificate, for the names and addresses that others reach it by.

        Raises:
            ConfigError: One of them can be none.
        """
        faults = [f"--host is {host!r}, expected a name or an address" for host in hosts if not is_host(host)]
        if faults:
            raise ConfigError.of("certs", faults)
        made = self._issue(f"{self.fleet}_broker", DEVICES, "broker/broker", days, hosts)
        for name in (DEVICES, COORDINATOR):
            self._write(self.folder / "broker" / f"{name}-ca.crt", self._authority(name).certificate, 0o644)
        return made

    def add_coordinator(self, days: int) -> Issued:
        """Makes the coordinator's certificate."""
        return self._issue(coordinator_name(self.fleet), COORDINATOR, "coordinator/tls", days)

    def add_device(self, device_id: str, days: int) -> Issued:
        """Makes a device's certificate; one that it has already stays good until it is revoked."""
        return self._issue(device_id, DEVICES, f"devices/{device_id}/tls", days)

    def revoke(self, name: str) -> int:
        """Takes back all certificates of a name, and returns how many.

        Raises:
            ConfigError: There is none that holds.
        """
        held = [one for one in self.issued if one.name == name and one.revoked_at is None]
        if not held:
            known = ", ".join(self.holders(DEVICES)[:20])
            raise ConfigError(f"{self.folder}: no certificate of {name} holds; there are those of {known}")
        self._note([structs.replace(one, revoked_at=self._at) if one in held else one for one in self.issued])
        self._write_lists()
        return len(held)

    def place(self, issued: Issued) -> Path:
        """Returns the folder in which a certificate lies."""
        if issued.hosts:
            return self.folder / "broker"
        return self.folder / (COORDINATOR if issued.authority == COORDINATOR else f"devices/{issued.name}")

    def holders(self, authority: str) -> list[str]:
        """Returns the names that have a certificate of an authority which holds, brokers apart."""
        return sorted({one.name for one in self.holding(authority)})

    def holding(self, authority: str) -> list[Issued]:
        """Returns the certificates of clients that hold."""
        return [
            one
            for one in self.issued
            if one.authority == authority and one.revoked_at is None and not one.hosts
        ]

    def authorities(self) -> str:
        """Returns both authorities' certificates, PEM."""
        return "".join(self._authority(name).certificate.decode() for name in (DEVICES, COORDINATOR))

    def _issue(self, name: str, authority: str, place: str, days: int, hosts: Sequence[str] = ()) -> Issued:
        signer = self._authority(authority)
        subject = Subject(name, self.fleet, "server" if hosts else "client", hosts)
        pair = issue(signer, subject, days, self._at)
        made = Issued(
            name=name, authority=authority, serial=f"{pair.serial:x}", made_at=self._at, hosts=tuple(hosts)
        )
        self._note([*self.issued, made])  # first: what nobody has noted could never be revoked
        path = self.folder / place
        self._write(path.with_name(f"{path.name}.key"), pair.key)
        self._write(path.with_name(f"{path.name}.crt"), pair.certificate, 0o644)
        if not hosts:
            self._write(path.with_name("ca.crt"), self._authority(DEVICES).certificate, 0o644)
        return made

    def _write_lists(self) -> None:
        for name in (DEVICES, COORDINATOR):
            revoked = {
                int(one.serial, 16): one.revoked_at
                for one in self.issued
                if one.authority == name and one.revoked_at is not None
            }
            content = revocation_list(self._authority(name), revoked, self._at)
            self._write(self.folder / "broker" / f"{name}-ca.crl", content, 0o644)

    def _authority(self, name: str) -> Pair:
        try:
            return Pair(
                (self._record.parent / f"{name}-ca.crt").read_bytes(), self._key_of(name).read_bytes()
            )
        except OSError as error:
            raise StateError(f"{error.filename}: cannot be read: {error.strerror}; restore it") from error

    def _key_of(self, authority: str) -> Path:
        return self._record.parent / f"{authority}-ca.key"

    def _note(self, issued: Iterable[Issued]) -> None:
        self.issued = tuple(issued)
        content = msgspec.json.format(
            msgspec.json.encode(Issues(fleet=self.fleet, certificates=self.issued)), indent=2
        )
        self._folder(self._record.parent)
        write_file(self._record, content + b"\n")

    def _write(self, path: Path, content: bytes, mode: int = 0o600) -> None:
        self._folder(path.parent)
        draft = path.with_name(f".{path.name}.partial")
        with room_for(path.name, path.parent):
            draft.unlink(missing_ok=True)  # its mode would stay
            write_through(draft, content, mode)
            draft.replace(path)

    def _folder(self, folder: Path) -> None:
        for one in (self.folder, self.folder / "devices", folder):
            one.mkdir(mode=0o700, parents=True, exist_ok=True)


class Wanted(NamedTuple):
    """What a command asks for."""

    hosts: tuple[str, ...] = ()  # of the broker
    devices: tuple[str, ...] = ()
    revoked: tuple[str, ...] = ()
    has_coordinator: bool = False  # anew; the first time it is made anyway
    days: int = DAYS

    def check(self, fleet: str | None) -> None:
        """Checks the names that it holds.

        Raises:
            ConfigError: Naming every one that can be none.
        """
        named = [("--fleet", fleet)] if fleet is not None else []
        named += [("--device", name) for name in self.devices]
        faults = [
            f"{what} is {name!r}, expected 1 to 64 of a-z, 0-9 and -"
            for what, name in named
            if not is_id(name)
        ]
        faults += [
            f"--revoke is {name!r}, a name that has none"
            for name in self.revoked
            if not _NAME.fullmatch(name)
        ]
        if faults:
            raise ConfigError.of("certs", faults)


def make(certificates: Certificates, wanted: Wanted) -> tuple[list[Issued], dict[str, int]]:
    """Makes what is wanted, and takes back what is not.

    Returns:
        The certificates that were made, and of each name that was taken back how many.

    Raises:
        ConfigError: There is no broker yet, and none is named; or a name has no certificate.
        StateError: An authority is damaged.
        DiskRefused: Some of it may have been made.
    """
    is_first = not certificates.issued
    if is_first and not wanted.hosts:
        raise ConfigError("certs: say by which --host devices reach the broker")
    certificates.found()
    num_revoked = {name: certificates.revoke(name) for name in wanted.revoked}
    made = [certificates.add_broker(wanted.hosts, wanted.days)] if wanted.hosts else []
    if is_first or wanted.has_coordinator:
        made.append(certificates.add_coordinator(wanted.days))
    made += [certificates.add_device(name, wanted.days) for name in wanted.devices]
    return made, num_revoked


def is_host(host: str) -> bool:
    """Tells whether a broker may be reached by this name or address."""
    return bool(_HOST.fullmatch(host))


def _read(path: Path) -> Issues:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Issues)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StateError(f"{path}: is damaged: {error}; restore it") from error
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}") from error
