"""What every broker of a fleet is told: who may do what, by which certificates, and how much of it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from coordinator.access.certificates import coordinator_name
from edge.protocol.rights import ANY, OWN, REST, Manner, Role, patterns

WRITTEN = "Written by `tunefleet broker-config"  # in the first line of every file that may be written anew
MAX_PACKET_BYTES = 2 << 20  # as clients announce it: a chunk of 1 MiB, its proof and its topic fit
MAX_QUEUED_BYTES = 256 << 20  # of one client that is away
MAX_QUEUED = 10_000
MAX_IN_FLIGHT = 64
SESSION_DAYS = 7
COORDINATORS = 16  # connections: the coordinator's own, those that it asks by, and a few who watch
Files = Mapping[str, str]


class BrokerPlan(NamedTuple):
    """One fleet's broker."""

    fleet: str
    port: int
    coordinator_port: int
    certs: Path | None  # the folder of `tunefleet certs`, absolute; None: users have passwords
    max_devices: int
    devices: Mapping[str, str] = {}  # with certs: each certificate that holds, as a URI, to its device
    coordinators: tuple[str, ...] = ()  # with certs: the coordinator's that hold, as URIs
    authorities: str = ""  # with certs: both authorities' certificates, PEM
    revoked: tuple[str, ...] = ()  # names of which no certificate holds any more

    @property
    def coordinator(self) -> str:
        """The coordinator's user name."""
        return coordinator_name(self.fleet)

    def topics(
        self, role: Role, manner: Manner, own: str, any_one: str = ANY, joint: str = "/", rest: str = REST
    ) -> list[str]:
        """Returns what a role may publish or read, as a broker writes it.

        Args:
            role: Whose rights.
            manner: Which of them.
            own: Stands for the user's own name.
            any_one: Stands for any one level.
            joint: Stands between levels.
            rest: Stands for all levels that follow, also none.
        """
        words = {ANY: any_one, OWN: own, REST: rest}
        return [
            joint.join(words.get(level, level) for level in levels)
            for levels in patterns(self.fleet, role, manner)
        ]

    def rules(self, role: Role, own: str, any_one: str = ANY) -> Iterator[tuple[str, str]]:
        """Yields each topic of a role with `read`, `write` or `readwrite`."""
        published, read = (self.topics(role, manner, own, any_one) for manner in ("publish", "subscribe"))
        for topic in dict.fromkeys(published + read):
            if topic in published and topic in read:
                yield topic, "readwrite"
            else:
                yield topic, "write" if topic in published else "read"
