"""From a fleet and its certificates to a broker's files on the disk."""

from pathlib import Path

from coordinator.access.authority import certificate_uri
from coordinator.access.brokers.aws_iot import aws_iot_files
from coordinator.access.brokers.emqx import emqx_files
from coordinator.access.brokers.mosquitto import mosquitto_files
from coordinator.access.brokers.nats import nats_files
from coordinator.access.brokers.plan import WRITTEN, BrokerPlan, Files
from coordinator.access.certificates import COORDINATOR, DEVICES, Certificates
from coordinator.access.kinds import BrokerKind
from edge.errors import ConfigError, StateError
from edge.protocol.messages import is_id
from edge.storage.disk import write_file

_POLICY = b'"iot:'  # JSON has no comments


def broker_plan(
    fleet: str | None,
    certs: Path | None,
    *,
    port: int,
    coordinator_port: int | None,
    max_devices: int,
    at: float,
) -> BrokerPlan:
    """Returns what a broker is to be told.

    Args:
        fleet: The fleet's name; None takes that of `certs`.
        certs: The folder of `tunefleet certs`.
        port: Where devices connect.
        coordinator_port: Where the coordinator does; None is the next one.
        max_devices: Connections of devices at a time.
        at: Unix time in seconds.

    Raises:
        ConfigError: There is no such fleet, or its ports are one.
        StateError: The folder of certificates is another fleet's, or damaged.
    """
    if fleet is None and certs is None:
        raise ConfigError("broker-config: say which --fleet, or give its --certs")
    if fleet is not None and not is_id(fleet):
        raise ConfigError(f"--fleet is {fleet!r}, expected 1 to 64 of a-z, 0-9 and -")
    other = coordinator_port or (port + 1 if port < 65535 else port - 1)
    if other == port:
        raise ConfigError(f"--port and --coordinator-port are both {port}, expected two")
    if certs is None:
        return BrokerPlan(fleet or "", port, other, None, max_devices)
    if not certs.is_dir():
        raise ConfigError(f"{certs}: is no folder; `tunefleet certs` makes one")
    held = Certificates(certs, fleet, at)
    devices, coordinators = (
        {certificate_uri(held.fleet, one.name, int(one.serial, 16)): one.name for one in held.holding(name)}
        for name in (DEVICES, COORDINATOR)
    )
    holding = {one.name for one in held.issued if one.revoked_at is None}
    return BrokerPlan(
        fleet=held.fleet,
        port=port,
        coordinator_port=other,
        certs=certs.resolve(),
        max_devices=max_devices,
        devices=devices,
        coordinators=tuple(coordinators),
        authorities=held.authorities(),
        revoked=tuple(sorted({one.name for one in held.issued} - holding)),
    )


def broker_files(kind: BrokerKind, plan: BrokerPlan, out: Path) -> Files:
    """Returns a broker's files, by name.

    Raises:
        ConfigError: This kind needs certificates.
    """
    folder = str(out.resolve())
    match kind:
        case "mosquitto":
            return mosquitto_files(plan, folder)
        case "mosquitto-2.1":
            return mosquitto_files(plan, folder, "2.1")
        case "nats":
            return nats_files(plan, folder)
        case "emqx":
            return emqx_files(plan, folder)
        case "aws-iot":
            return aws_iot_files(plan)


def write_files(out: Path, files: Files) -> None:
    """Writes files into a folder, over their like from before and over nothing else.

    Raises:
        StateError: A file of that name is somebody else's.
        DiskRefused: There is no room.
    """
    for name in files:
        path = out / name
        if path.exists() and not any(mark in path.read_bytes()[:400] for mark in (WRITTEN.encode(), _POLICY)):
            raise StateError(f"{path}: was not written by broker-config; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).parent.mkdir(exist_ok=True)
        write_file(out / name, content.encode())
