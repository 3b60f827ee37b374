"""Who may publish and who may read what on the broker: the one table that access rules are written from.

A device's topics bear its id, and its user name at the broker is that id: so `OWN` stands in a pattern for
the name of whoever asks, and no broker need know the devices. Rules go by the user name alone. A client id is
what a client says of itself, and proves nothing.
"""

import re
from typing import Literal, NamedTuple

from edge.protocol.topics import (
    FORMS,
    ROOT,
    AccessTopic,
    AnswerTopic,
    BlobTopic,
    ChallengeTopic,
    ChunkTopic,
    CoordinatorTopic,
    DeviceAnswerTopic,
    DeviceChallengeTopic,
    EnrolTopic,
    HeaderTopic,
    HelloTopic,
    ReceiptTopic,
    StateTopic,
    TelemetryTopic,
    Topic,
    VersionTopic,
    WantTopic,
)

Role = Literal["coordinator", "device"]
Manner = Literal["publish", "subscribe"]
ANY, OWN, REST = "+", "<own>", "#"
OLD_ROOT = "tunefleet/v1"

_COORDINATOR: frozenset[Role] = frozenset({"coordinator"})
_DEVICE: frozenset[Role] = frozenset({"device"})
_BOTH = _COORDINATOR | _DEVICE

# What `tunefleet watch` asks for, with the coordinator's certificate: everything of the fleet.
WATCHED = (f"coordinator/{REST}", f"version/{ANY}", f"device/{ANY}/{ANY}", f"device/{ANY}/up/{ANY}/{ANY}",
           f"blob/{ANY}/{ANY}")  # fmt: skip


class Right(NamedTuple):
    """Who publishes a kind of topic, and who reads it; a device only what bears its own id."""

    publish: frozenset[Role]
    subscribe: frozenset[Role]


RIGHTS: dict[type[Topic], Right] = {
    CoordinatorTopic: Right(_COORDINATOR, _BOTH),
    ChallengeTopic: Right(_COORDINATOR, _COORDINATOR),  # one that starts asks for others
    AnswerTopic: Right(_COORDINATOR, _COORDINATOR),
    VersionTopic: Right(_COORDINATOR, _BOTH),
    BlobTopic: Right(_COORDINATOR, _DEVICE),
    HelloTopic: Right(_BOTH, _COORDINATOR),  # the coordinator takes what is retained of a forgotten device
    StateTopic: Right(_BOTH, _BOTH),  # a device looks for copies of itself
    DeviceChallengeTopic: Right(_DEVICE, _DEVICE),
    DeviceAnswerTopic: Right(_DEVICE, _DEVICE),
    EnrolTopic: Right(_DEVICE, _COORDINATOR),
    AccessTopic: Right(_COORDINATOR, _DEVICE),
    WantTopic: Right(_DEVICE, _COORDINATOR),
    ReceiptTopic: Right(_COORDINATOR, _DEVICE),
    TelemetryTopic: Right(_DEVICE, _COORDINATOR),
    HeaderTopic: Right(_DEVICE, _COORDINATOR),
    ChunkTopic: Right(_DEVICE, _COORDINATOR),
}
# Of wire version 1: who speaks it is told to update, and a newer device finds out that a fleet is older.
OLD_RIGHTS: dict[type[Topic], Right] = {
    HelloTopic: Right(_DEVICE, _COORDINATOR),
    VersionTopic: Right(_COORDINATOR, _DEVICE),
}


def patterns(fleet: str, role: Role, manner: Manner) -> list[tuple[str, ...]]:
    """Returns the topics that a role may publish or read, level by level, with `ANY` and `OWN`.

    Args:
        fleet: The fleet's name.
        role: Whose rights.
        manner: Which of them.
    """
    found: dict[tuple[str, ...], None] = {}
    if (role, manner) == ("coordinator", "subscribe"):
        found = {(*ROOT.split("/"), fleet, *form.split("/")): None for form in WATCHED}
    for root, table in ((ROOT, RIGHTS), (OLD_ROOT, OLD_RIGHTS)):
        for kind, right in table.items():
            if role in getattr(right, manner):
                found[(*root.split("/"), fleet, *_levels(kind, role))] = None
    return list(found)


def _levels(kind: type[Topic], role: Role) -> list[str]:
    own = OWN if role == "device" else ANY
    return [
        own if level == "{device_id}" else re.sub(r"{\w+}", ANY, level) for level in FORMS[kind].split("/")
    ]
