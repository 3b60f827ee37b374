"""What a broker does not take: said with what to do, counted, and never sent so often that it hurts.

With MQTT 5 a broker says no in the acknowledgement, or in the DISCONNECT with which it ends the connection.
With 3.1.1 it can only drop a message without a word, which nobody here can see, or cut the connection: again
and again, as what was not acknowledged is sent again. So a message that was under way when two connections
broke goes alone, and one that breaks three more alone is refused; the next to its topic has one try.
"""

import logging

from paho.mqtt.reasoncodes import ReasonCode

from edge.complaints import Complaints

LOG = logging.getLogger(__name__)
CUTS_TOGETHER = 2  # connections that broke while a message was under way among others: a bad link does that
CUTS_ALONE = 3
MOST_TOPICS = 1000  # remembered
SIZE = "it is too large: raise the broker's limit (Mosquitto: max_packet_size), or lower chunk_bytes"
RIGHTS = "allow this client's user to publish there (the broker's access list)"
_ADVICE = {  # by reason code, MQTT 5, 2.4
    0x87: RIGHTS,
    0x93: "the broker takes fewer messages at a time than it says",
    0x95: SIZE,
    0x96: "raise the broker's limit on the rate of messages",
    0x97: "raise the broker's quota, or wait for it",
    0x9A: "the broker must keep retained messages",
    0x9B: "the broker must take QoS 1",
}
_ELSE = "the broker's log says why"


def advice(reason: ReasonCode) -> str:
    """Returns what to do about a reason code that says no."""
    return _ADVICE.get(reason.value, _ELSE)


class Refusals:
    """What one broker did not take.

    Args:
        place: The broker's host and port.
        complaints: Gets each kind.
    """

    def __init__(self, place: str, complaints: Complaints) -> None:
        self._place = place
        self._complain = complaints
        self._cut: dict[str, None] = {}  # topics at which the connection broke again and again

    def tell(self, topic: str, size: int, why: str) -> None:
        """Tells that a message was refused; whoever sent it goes on."""
        self._complain(f"broker {self._place} refused {size:,} bytes to {topic}: {why}", kind=why)

    def tell_cut(self, topic: str, size: int) -> None:
        """Tells, and remembers, that a message breaks the connection each time."""
        if len(self._cut) >= MOST_TOPICS:
            self._cut.clear()
        self._cut[topic] = None
        self.tell(topic, size, f"the connection breaks each time it is sent; {SIZE}, or {RIGHTS}")

    def forget(self, topic: str) -> None:
        """Notes that a message to a topic was taken."""
        self._cut.pop(topic, None)

    def sending(self, topic: str) -> "Sending":
        """Returns the sending of a message to a topic."""
        return Sending(topic in self._cut)


class Sending:
    """One message on its way, over as many connections as it takes.

    Args:
        is_suspect: Whether the last one to its topic was cut off again and again.
    """

    def __init__(self, is_suspect: bool) -> None:
        self._num_together = CUTS_TOGETHER if is_suspect else 0
        self._num_alone = CUTS_ALONE - 1 if is_suspect else 0

    @property
    def is_alone(self) -> bool:
        """Tells whether nothing else may be under way with it."""
        return self._num_together >= CUTS_TOGETHER

    @property
    def is_hopeless(self) -> bool:
        """Tells whether it is to be sent no more."""
        return self._num_alone >= CUTS_ALONE

    def cut(self) -> None:
        """Notes that the connection broke while it was under way."""
        if self.is_alone:
            self._num_alone += 1
        else:
            self._num_together += 1
