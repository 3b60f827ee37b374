"""What a coordinator tells about itself; shown by `edge.events`, fields in docs/json.md."""

from typing import Any, Literal, Protocol

from edge.events import Event, Show

EventKind = Literal[
    "loaded",  # the base model, to score versions or judge steps with: in which precision
    "serving",
    "began",  # with the adapter that version 0 is
    "calibrated",  # the calibration loss that the first step begins from
    "joined",  # a device is here for the first time
    "online",
    "offline",
    "accepted",
    "rejected",
    "refused",  # an update that proved nobody's
    "discarded",  # accepted, and in no version after all
    "waiting",  # how far the next version is
    "version",
    "filtered",  # an update that a filter left out of a version, or cut
    "rollback",
    "restored",  # the state is of an earlier version than the fleet was
    "scored",
    "warning",
    "stopped",
]


class Tell(Protocol):
    """Tells that something happened."""

    def __call__(self, kind: EventKind, text: str, **facts: Any) -> None:
        """Takes JSON values as facts, units at the end of their names."""


def teller(show: Show) -> Tell:
    """A `Tell` that shows events."""

    def tell(kind: EventKind, text: str, **facts: Any) -> None:
        show(Event(kind, text, facts))

    return tell
