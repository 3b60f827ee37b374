"""What the two loops of a running client share."""

import asyncio
from typing import Any, NamedTuple

from edge.device.config import DeviceConfig
from edge.device.inbox import Inbox
from edge.device.state import DeviceState
from edge.events import Event, EventKind, Show
from edge.protocol.topics import Topics
from edge.storage.spool import Spool
from edge.transport.base import Transport


class Session(NamedTuple):
    """One run of one client."""

    config: DeviceConfig
    backend: str  # as the capability card shows it
    state: DeviceState
    spool: Spool
    inbox: Inbox
    transport: Transport
    show: Show
    spooled: asyncio.Event  # an update lies in the spool

    @property
    def topics(self) -> Topics:
        """Of the fleet."""
        return Topics(self.config.fleet)

    def say(self, kind: EventKind, text: str, **facts: Any) -> None:
        """Tells what happened."""
        self.show(Event(kind, text, facts))
