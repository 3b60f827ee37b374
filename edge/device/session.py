"""What the loops of a running client share."""

from typing import Any, NamedTuple

from msgspec import Struct

from edge.complaints import Complaints
from edge.delivery.download import Downloader
from edge.delivery.upload import Uploader
from edge.device.budget import Budget
from edge.device.config import DeviceConfig
from edge.device.inbox import Inbox
from edge.device.state import DeviceState
from edge.device.wakeups import Wakeups
from edge.events import Event, EventKind, Show
from edge.protocol.topics import Topics
from edge.storage.spool import Spool
from edge.transport.base import Transport


class Session(NamedTuple):
    """One run of one client."""

    config: DeviceConfig
    backend: str  # as the capability card shows it
    state: DeviceState
    budget: Budget  # of its privacy
    spool: Spool
    inbox: Inbox
    transport: Transport
    downloader: Downloader
    uploader: Uploader
    wakeups: Wakeups
    show: Show
    complain: Complaints

    @property
    def topics(self) -> Topics:
        """Returns the fleet's topics."""
        return Topics(self.config.fleet)

    async def publish(
        self, kind: str, record: Struct, *, retain: bool = False, expiry_s: int | None = None
    ) -> bool:
        """Publishes a signed record on the device's topic of that kind; False where the broker refused it."""
        topic = self.topics.device(self.config.device_id, kind)
        return await self.transport.publish(
            topic, self.state.signer.seal(topic, record), retain=retain, expiry_s=expiry_s
        )

    def say(self, kind: EventKind, text: str, **facts: Any) -> None:
        """Tells what happened."""
        self.show(Event(kind, text, facts))

    def warn(self, text: str) -> None:
        """Tells what is amiss, the same at most once a minute."""
        self.complain(text)
