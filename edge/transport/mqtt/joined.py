"""A paho client that writes what is waiting in one go.

paho gives each packet to the socket by itself, and under load a coordinator sends three small ones for every
update: two acknowledgements and a receipt. Each `send` costs as much as checking a signature, and wakes the
broker once more. Here packets that wait are joined before they are written.
"""

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode

MOST_BYTES = 64 * 1024  # that are copied together; what is larger goes by itself


class JoiningClient(Client):
    """A `Client` whose packets wait for the event loop (`on_socket_register_write`), and leave together."""

    def _packet_write(self) -> MQTTErrorCode:
        waiting, joined, number = self._out_packet, bytearray(), 0
        for one in waiting:
            # Of those without QoS (CONNECT, PINGREQ, DISCONNECT) paho wants to see the end.
            if one["qos"] == 0 or len(joined) + one["to_process"] > MOST_BYTES:
                break
            joined += one["packet"][one["pos"] :]
            number += 1
        if number > 1:
            for _ in range(number):
                last = waiting.popleft()
            last["packet"], last["pos"], last["to_process"] = joined, 0, len(joined)
            waiting.appendleft(last)
        return super()._packet_write()
