"""Devices that speak wire version 1: none is served, and each is told so in one line, as its owner is here.

The devices of version 1 print what they cannot read, with the name of the field that they do not know. So
what is retained for them, where they look for manifests, is an object whose only field is what to do.
"""

import re

import msgspec

from coordinator.events.telling import Complaints
from edge.errors import ProtocolError
from edge.protocol.messages import Id
from edge.protocol.rights import OLD_ROOT
from edge.protocol.tiers import tier_name
from edge.transport.base import Transport

NOTICE = b'{"this fleet speaks wire version 2: update tunefleet on this device":true}'
MOST = 1000  # devices that are told of: strangers make up names


class OlderWire:
    """The devices of a fleet that speak version 1.

    Args:
        transport: Of the coordinator.
        fleet: Its name.
        ranks: Of the tiers whose manifests a device of version 1 may look for.
        complain: Gets a line for each device.
    """

    def __init__(
        self, transport: Transport, fleet: str, ranks: tuple[int, ...], complain: Complaints
    ) -> None:
        self._transport = transport
        self._root = f"{OLD_ROOT}/{fleet}"
        self._ranks = ranks
        self._complain = complain
        self._hello = re.compile(re.escape(self._root) + "/device/([^/]+)/hello")
        self._told: set[str] = set()

    async def subscribe(self) -> None:
        """Listens for such devices, and leaves the notice for them."""
        await self._transport.subscribe(f"{self._root}/device/+/hello")
        for rank in self._ranks:
            await self._transport.publish(f"{self._root}/version/{tier_name(rank)}", NOTICE, retain=True)

    def takes(self, topic: str) -> bool:
        """Tells whether a topic is of the older wire."""
        return topic.startswith(f"{self._root}/")

    def hear(self, topic: str) -> None:
        """Tells of a device that has shown itself, once.

        Raises:
            ProtocolError: That is no device's name.
        """
        found = self._hello.fullmatch(topic)
        try:
            name = msgspec.convert(found and found[1], Id)
        except msgspec.ValidationError as error:
            raise ProtocolError(f"wire version 1: {error}") from error
        if name not in self._told and len(self._told) < MOST:
            self._told.add(name)
            self._complain(f"{name} speaks wire version 1: update tunefleet there")
