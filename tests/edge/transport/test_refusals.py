"""What a broker does not take is said and counted, ends nobody, and is not sent for ever."""

import asyncio
import contextlib
import logging

import pytest

from edge.transport.mqtt.transport import MqttTransport
from edge.transport.settings import MqttSettings

CONNACK = {"3.1.1": b"\x20\x02\x00\x00", "5": b"\x20\x03\x00\x00\x00"}
DISCONNECT = 0xE0


class Picky:
    """A broker that takes every publish, and cuts the link at those whose payload holds `poison`.

    Args:
        protocol: Spoken.
        word: What it sends before it cuts; empty is nothing.
        most: Publishes that it takes on one connection; then it cuts, too.
    """

    def __init__(self, protocol, word=b"", most=1000):
        self.protocol, self.word, self.most = protocol, word, most
        self.pauses = []
        self.num_connections = 0
        self.seen = []
        self.handlers = set()

    @contextlib.asynccontextmanager
    async def served(self):
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            settings = MqttSettings(host="127.0.0.1", port=port, client_id="d1", protocol=self.protocol)
            async with MqttTransport(settings, sleep=self._sleep) as client:
                yield client
        await asyncio.gather(*self.handlers)

    async def _sleep(self, pause_s):
        self.pauses.append(pause_s)
        await asyncio.sleep(0)

    async def _serve(self, reader, writer):
        num_taken = 0
        self.handlers.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind, body = await self._packet(reader)
                if kind == 0x10:
                    self.num_connections += 1
                    writer.write(CONNACK[self.protocol])
                elif kind & 0xF0 == 0x30 and b"poison" in body:
                    if self.word:
                        writer.write(bytes([DISCONNECT, len(self.word)]) + self.word)
                    break
                elif kind & 0xF0 == 0x30:
                    start = int.from_bytes(body[:2], "big") + 2
                    self.seen.append(body[2:start].decode())
                    writer.write(b"\x40\x02" + body[start : start + 2])
                    num_taken += 1
                    if num_taken == self.most:
                        break
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _packet(self, reader):
        first = (await reader.readexactly(1))[0]
        length = shift = 0
        while True:
            byte = (await reader.readexactly(1))[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return first, await reader.readexactly(length)


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_what_breaks_the_connection_each_time_is_given_up_and_all_else_gets_through(protocol, caplog):
    async def scenario():
        broker = Picky(protocol)
        async with broker.served() as client, asyncio.timeout(20):
            sent = [client.publish(f"good/{number}", bytes(100)) for number in range(40)]
            bad = client.publish("bad", b"poison" * 100)
            taken = await asyncio.gather(bad, *sent)
            assert taken == [False] + [True] * 40
            assert set(broker.seen) == {f"good/{number}" for number in range(40)}
            assert broker.num_connections == 6  # twice among others, three times alone, and one that lasts
            assert not await client.publish("bad", b"poison")
            assert await client.publish("bad", b"mended")
            assert broker.num_connections == 7  # it was known: one try
            assert not await client.publish("bad", b"poison")
            assert await client.publish("good", b"")
            assert broker.num_connections == 12  # it was taken in between, so it has all its tries again

    asyncio.run(scenario())
    assert "refused 600 bytes to bad: the connection breaks each time it is sent" in caplog.text


@pytest.mark.parametrize(
    ("code", "told"),
    [(0x95, "it is too large: raise the broker's limit"), (0x97, "raise the broker's quota, or wait for it")],
)
def test_a_broker_that_says_why_it_disconnects_is_quoted_with_what_to_do(code, told, caplog):
    async def scenario():
        broker = Picky("5", bytes([code, 0]))
        async with broker.served() as client, asyncio.timeout(20):
            assert not await client.publish("bad", b"poison")
            assert await client.publish("good", b"")

    asyncio.run(scenario())
    assert (
        f"the connection is lost ({'Packet too large' if code == 0x95 else 'Quota exceeded'}; " in caplog.text
    )
    assert told in caplog.text


def test_a_link_that_breaks_after_each_step_forward_is_not_waited_for_longer_and_longer():
    async def scenario():
        broker = Picky("5", most=2)
        async with broker.served() as client, asyncio.timeout(20):
            for number in range(60):
                assert await client.publish(f"step/{number}", b"")
        assert len(broker.pauses) >= 25
        assert max(broker.pauses) <= 0.25

    asyncio.run(scenario())


@pytest.mark.broker
def test_a_publish_that_the_access_list_forbids_is_told_with_what_to_do_and_others_go_on(
    mosquitto, tmp_path, caplog
):
    caplog.set_level(logging.WARNING)
    rules = tmp_path / "acl"
    rules.write_text("topic readwrite free/#\n")

    async def scenario():
        lines = f"allow_anonymous true\nacl_file {rules}"
        async with mosquitto("5", lines) as site, site.client("d1") as client:
            for _ in range(20):
                assert not await client.publish("forbidden", b"1")
            assert await client.publish("free/1", b"1")

    asyncio.run(scenario())
    told = [line for line in caplog.text.splitlines() if "refused 1 bytes to forbidden" in line]
    assert len(told) == 1
    assert "allow this client's user to publish there" in told[0]
