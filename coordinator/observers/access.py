"""What `tunefleet device list` tells: every device that came or was let in, and how."""

from msgspec import Struct

from coordinator.ledger.contract import Journal


class DeviceAccess(Struct, frozen=True):
    """One device."""

    device: str
    key: str  # public; empty: it was banned before it ever came
    admitted_by: str  # hand, token, or settings: their list, or open enrolment
    banned_at: float | None  # Unix time; None: it is not
    last_seen: float | None  # None: it never came
    num_rotations: int  # keys that it had before


def device_access(journal: Journal) -> list[DeviceAccess]:
    """Reads who may take part from a journal that a coordinator may be writing to."""
    said = {one.device: one for one in journal.access.all()}
    here = {one.device: one for one in journal.devices()}
    found = []
    for name in sorted(said | here):
        known, device = said.get(name), here.get(name)
        found.append(
            DeviceAccess(
                device=name,
                key=known.key if known else here[name].key,
                admitted_by=known.source if known else "settings",
                banned_at=known.banned_at if known else None,
                last_seen=device.last_seen if device else None,
                num_rotations=len(known.earlier) if known else 0,
            )
        )
    return found
