"""What a broker says of one session of a device or a coordinator, also after its end."""

from edge.protocol.messages import Presence, encode_message
from edge.transport.base import BirthAndWill


def session_presence(topic: str, epoch: int) -> BirthAndWill:
    """Returns birth and will of one session.

    Args:
        topic: Where it is retained.
        epoch: Unix time in ms at the session's start; tells a late will of an earlier session.
    """
    birth, will = (encode_message(Presence(online=online, epoch=epoch)) for online in (True, False))
    return BirthAndWill(topic, birth, will)
