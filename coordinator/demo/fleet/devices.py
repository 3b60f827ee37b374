"""What each device of the demo does now, by the events that `tunefleet join --json` prints."""

from pathlib import Path
from typing import Any

import msgspec

from coordinator.demo.shown.views import Activity


class Events:
    """The events of one device, read from its log as they come.

    Args:
        path: What it prints, one JSON object a line; a file that may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_read = 0  # bytes
        self._now = Activity("starts")

    def now(self) -> Activity:
        """Returns what the device does, by its last events."""
        if self._path.is_file():
            with self._path.open("rb") as log:
                log.seek(self._num_read)
                lines, end, _ = log.read().rpartition(b"\n")
            self._num_read += len(lines) + len(end)
            for line in lines.splitlines():
                self._take(line)
        return self._now

    def _take(self, line: bytes) -> None:
        try:
            event = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            return  # a library's own words
        self._now = activity(event) or self._now


def activity(event: dict[str, Any]) -> Activity | None:
    """Returns what a device does after an event; None where it goes on with what it did before."""
    text = str(event.get("text", ""))
    match event.get("event"):
        case "joined":
            return Activity("has joined")
        case "waiting":
            return Activity(f"waits {text}")
        case "proved":
            return Activity("has proved its model")
        case "downloading" if event["done"] < event["total"]:
            return Activity(f"fetches {text.partition(',')[0]}")
        case "downloading":
            return Activity("loads its model")  # where it has not done so yet
        case "training":
            return Activity(f"trains on version {event['version']}", event["done"], event["total"])
        case "spooled":
            return Activity("sends its update")
        case "rejected" | "warning":
            return Activity(text)
        case "stopped":
            return Activity("has stopped")
    return None
