"""Packets that wait leave together, byte for byte as they would have one by one."""

import socket
from contextlib import contextmanager

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from edge.transport.mqtt.joined import MOST_BYTES, JoiningClient


def counting(kind):
    class Counting(kind):
        """Keeps what it gives to the socket, which takes `most` bytes at a time."""

        sent, most = (), 1 << 30

        def _sock_send(self, buf):
            taken = super()._sock_send(bytes(buf[: self.most]))
            self.sent = (*self.sent, bytes(buf[:taken]))
            return taken

    return Counting


@contextmanager
def client(kind):
    """A client that has said CONNECT to somebody who listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        made = counting(kind)(CallbackAPIVersion.VERSION2, "x", manual_ack=True)
        made.max_inflight_messages_set(0)
        made.connect("127.0.0.1", server.getsockname()[1])
        made.on_socket_register_write = lambda *_: None
        made.sent = ()
        try:
            yield made
        finally:
            made.disconnect()
            made.loop_write()


def fill(made, payloads):
    for number, payload in enumerate(payloads):
        made.ack(number + 1, 1)
        made.publish(f"t/{number}", payload, qos=1)


def written(kind, payloads, most=1 << 30):
    with client(kind) as made:
        made.most = most
        fill(made, payloads)
        assert made.sent == ()
        while made.want_write():
            made.loop_write()
        return made.sent


@pytest.mark.parametrize("most", [1 << 30, 700, 1])
def test_what_waits_leaves_as_the_bytes_that_it_is(most):
    payloads = [bytes([number]) * 300 for number in range(5)]
    assert b"".join(written(JoiningClient, payloads, most)) == b"".join(written(Client, payloads))


def test_many_small_ones_are_one_write():
    payloads = [b"x" * 300] * 20
    assert (len(written(Client, payloads)), len(written(JoiningClient, payloads))) == (40, 1)


def test_a_large_one_is_not_copied_behind_others():
    large = b"x" * MOST_BYTES
    sizes = [len(one) for one in written(JoiningClient, [b"x", large, b"x"])]
    assert max(sizes[0], sizes[-1]) < 100
    assert max(sizes) == MOST_BYTES + len("t/1") + 8  # fixed header, length of the topic, number


def test_the_farewell_is_seen_by_paho_itself():
    with client(JoiningClient) as made:
        fill(made, [b"x"] * 3)
        made.disconnect()
        made.loop_write()
        assert len(made.sent) == 2
        assert not made.is_connected()
