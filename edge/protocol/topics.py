"""Topic names of wire version 1: at most 7 slashes, ids in `[a-z0-9-]`."""

ROOT = "tunefleet/v1"


class Topics:
    """All topics of one fleet.

    Args:
        fleet: The fleet's name, one topic level.
    """

    def __init__(self, fleet: str) -> None:
        self.root = f"{ROOT}/{fleet}"
        self.coordinator = f"{self.root}/coordinator"
        self.challenge = f"{self.coordinator}/challenge"
        self.answer = f"{self.coordinator}/answer"

    def version(self, tier: str) -> str:
        """Retained manifest of the current version for `tier`."""
        return f"{self.root}/version/{tier}"

    def blob(self, sha256: str, chunk: int | str = "+") -> str:
        """Chunk of a version's bytes; by default the filter for all of them."""
        return f"{self.root}/blob/{sha256}/{chunk}"

    def device(self, device_id: str, kind: str) -> str:
        """`hello`, `state`, `want`, `receipt` or `telemetry` of a device; `+` for all devices."""
        return f"{self.root}/device/{device_id}/{kind}"

    def up(self, device_id: str, update: str, part: int | str) -> str:
        """Part of an update: `header`, or a chunk's number; `+` in a filter."""
        return f"{self.root}/device/{device_id}/up/{update}/{part}"

    def levels(self, topic: str) -> list[str]:
        """Levels of `topic` below this fleet's root; empty for a topic of another fleet."""
        prefix = self.root + "/"
        return topic.removeprefix(prefix).split("/") if topic.startswith(prefix) else []
