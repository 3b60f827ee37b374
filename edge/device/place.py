"""A device's place in its fleet: one client with one key, whatever copies of its state folder there are."""

from collections.abc import Callable

from edge.delivery.inquiry import Found, Seat
from edge.delivery.place import Place, describe
from edge.errors import PlaceTaken
from edge.protocol.signing import Signer
from edge.protocol.topics import Topics
from edge.transport.base import Transport


def device_place(
    fleet: str,
    device_id: str,
    signer: Signer,
    connect: Callable[[], Transport],
    warn: Callable[[str], object],
) -> Place:
    """Returns the place of one device; see `Place`."""
    topics = Topics(fleet)
    seat = Seat(fleet, *(topics.device(device_id, kind) for kind in ("state", "challenge", "answer")))

    def taken(found: Found, is_running: bool) -> PlaceTaken:
        name = f"device {device_id} of fleet {fleet}"
        where = describe(found.holder) if found.holder else ""
        if is_running:
            return PlaceTaken(
                f"{name}: another one took its place, from a copy of this state folder{where}; "
                "this one has stopped, all is on disk; run only one of them"
            )
        return PlaceTaken(
            f"{name} is running already, from a copy of this state folder{where}; stop that one first, or "
            "join as another device, with a new --state and --device-id"
        )

    return Place(seat, signer, connect, taken, warn)
