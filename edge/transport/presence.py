"""What a broker says of one session of a device or a coordinator, also after its end."""

from edge.protocol.messages import Presence
from edge.protocol.signing import Signer
from edge.transport.base import BirthAndWill


class SessionPresence:
    """Makes birth and will of one connection after the other, each signed anew.

    A will is signed right after its birth: later than all that was said of the connections before, and
    earlier than what is said of the next.

    Args:
        topic: Where it is retained.
        signer: Of the session.
    """

    def __init__(self, topic: str, signer: Signer) -> None:
        self._topic = topic
        self._signer = signer

    def __call__(self) -> BirthAndWill:
        """Returns birth and will of the next connection."""
        birth, will = (
            self._signer.seal(self._topic, Presence(online=is_online)) for is_online in (True, False)
        )
        return BirthAndWill(self._topic, birth, will)
