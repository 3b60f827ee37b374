import asyncio
import hashlib
from contextlib import asynccontextmanager

import pytest

from edge.delivery.download import Downloader
from edge.delivery.upload import Uploader
from edge.errors import BrokerRefused, MissingObject
from edge.protocol.chunks import chunk_numbers, split_chunks
from edge.protocol.merkle import Tree
from edge.protocol.messages import Receipt, Want
from edge.protocol.signing import Keyring, Signer, new_key, read_signed
from edge.protocol.topics import Topics
from edge.storage.parts import PartFile
from edge.storage.spool import Spool
from edge.transport.memory import MemoryBroker, MemoryTransport

TOPICS = Topics("home")
BLOB = bytes(range(256)) * 200  # 51,200 bytes: 50 chunks of 1,024
CHUNKS = list(split_chunks(BLOB, 1024))
SHA256 = hashlib.sha256(BLOB).hexdigest()
TREE = Tree(CHUNKS)
SIGNER = Signer(new_key(), 1)
WANT = TOPICS.device("lamp", "want")


class Peer:
    """Two ends of a wire: `mine` belongs to what is tested."""

    def __init__(self):
        broker = MemoryBroker()
        self.mine, self.other = MemoryTransport(broker, "lamp"), MemoryTransport(broker, "coordinator")

    @asynccontextmanager
    async def answering(self, topic_filter, answer, receive):
        """`answer` gets what comes to the other end, `receive` what comes to this one."""

        async def listen(transport, handle):
            async for message in transport.messages():
                await handle(message)

        async with self.mine, self.other:
            await self.other.subscribe(topic_filter)
            loops = [
                asyncio.create_task(listen(self.other, answer)),
                asyncio.create_task(listen(self.mine, receive)),
            ]
            try:
                yield
            finally:
                for loop in loops:
                    loop.cancel()
                await asyncio.gather(*loops, return_exceptions=True)


def fetch(part, serve, patience_s=5.0, bad=()):
    """Downloads into `part`; `serve` names the chunks that a want is answered with. Returns the wants."""
    wants = []
    peer = Peer()
    download = Downloader(peer.mine, TOPICS, "lamp", SIGNER, patience_s)

    async def answer(message):
        wants.append(Keyring().open(message.topic, read_signed(message.payload), Want).record)
        for chunk in bad:
            download.receive(*chunk)
        for number in serve(wants):
            await peer.other.publish(TOPICS.blob(SHA256, number), TREE.proof(number) + CHUNKS[number])

    async def receive(message):
        topic = TOPICS.parse(message.topic)
        download.receive(topic.sha256, topic.number, message.payload)

    async def way():
        async with peer.answering(WANT, answer, receive), asyncio.timeout(10):
            return await download.fetch(part, lambda _: None)

    return asyncio.run(way()), wants


def asked(wants):
    """The first chunks of the last want, as many as its window takes."""
    return list(chunk_numbers(wants[-1].ranges))[: wants[-1].window]


def test_a_download_asks_window_by_window(tmp_path):
    part = PartFile(tmp_path / "part", len(BLOB), 1024, SHA256, TREE.root)
    is_here, wants = fetch(part, asked)
    assert is_here
    part.finish(tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == BLOB
    assert [want.ranges[0][0] for want in wants] == [0, 16, 32, 48]


def test_a_download_goes_on_from_the_chunks_that_are_there(tmp_path):
    part = PartFile(tmp_path / "part", len(BLOB), 1024, SHA256, TREE.root)
    for number in range(45):
        part.write(number, TREE.proof(number) + CHUNKS[number])
    again = PartFile(tmp_path / "part", len(BLOB), 1024, SHA256, TREE.root)
    is_here, wants = fetch(again, asked)
    assert is_here
    assert [want.ranges for want in wants] == [((45, 50),)]


def test_chunks_that_another_device_asked_for_count(tmp_path):
    part = PartFile(tmp_path / "part", len(BLOB), 1024, SHA256, TREE.root)
    is_here, wants = fetch(part, lambda wants: range(50))
    assert is_here
    assert len(wants) < 4


def test_a_want_that_was_answered_in_part_is_repeated_for_the_rest(tmp_path):
    part = PartFile(tmp_path / "part", len(BLOB), 1024, SHA256, TREE.root)
    is_here, wants = fetch(part, lambda wants: asked(wants)[::2] or [], patience_s=0.05)
    assert is_here
    assert wants[1].ranges[0] == (1, 2)


def test_a_download_that_stands_still_gives_up_and_keeps_what_came(tmp_path):
    part = PartFile(tmp_path / "part", len(BLOB), 1024, SHA256, TREE.root)
    is_here, _ = fetch(part, lambda wants: [3] if len(wants) == 1 else [], patience_s=0.05)
    assert not is_here
    assert PartFile(tmp_path / "part", len(BLOB), 1024, SHA256, TREE.root).received.missing() == (
        (0, 3),
        (4, 50),
    )


def test_chunks_of_no_blob_do_no_harm(tmp_path):
    """Nor of another one: what is asked for comes all the same."""
    part = PartFile(tmp_path / "part", len(BLOB), 1024, SHA256, TREE.root)
    junk = [TREE.proof(0) + b"x" * 1024, TREE.proof(1) + CHUNKS[1], b"too short"]
    bad = [(SHA256, 50, b"x" * 1024), *((SHA256, 0, one) for one in junk), ("0" * 64, 0, b"x" * 1024)]
    is_here, _ = fetch(part, asked, bad=bad)
    assert is_here
    part.finish(tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == BLOB


class Forbidding(MemoryTransport):
    """A transport whose broker's rights do not reach to what is to be read."""

    async def subscribe(self, topic_filter):
        raise BrokerRefused(f"refused: {topic_filter}")


def test_a_download_that_may_not_be_listened_to_stops_coming_and_ends_nothing(tmp_path):
    async def way():
        async with Forbidding(MemoryBroker(), "lamp") as transport:
            download = Downloader(transport, TOPICS, "lamp", SIGNER, patience_s=0.05)
            part = PartFile(tmp_path / "part", len(BLOB), 1024, SHA256, TREE.root)
            return await download.fetch(part, lambda _: None)

    assert not asyncio.run(way())


@pytest.fixture
def entry(tmp_path, make_header):
    (tmp_path / "spool").mkdir()
    spool = Spool(tmp_path / "spool", tmp_path / "residual")
    header = make_header(BLOB, device_id="lamp")
    spool.add(header, BLOB, None)
    return spool.entries()[0]


def send(entry, judge, patience_s=5.0):
    """Uploads; `judge` sees all parts that came so far and returns a receipt or None."""
    parts = []
    peer = Peer()
    upload = Uploader(peer.mine, TOPICS, SIGNER, patience_s)

    async def answer(message):
        parts.append(message.topic.rpartition("/")[2])
        if receipt := judge(parts):
            upload.receive(receipt)

    async def receive(message):
        pass

    async def way():
        async with peer.answering(TOPICS.up("lamp", "+", "+"), answer, receive), asyncio.timeout(10):
            return await upload.send(entry)

    return asyncio.run(way()), parts


def receipt(entry, status, **fields):
    return Receipt(update=entry.header.update, header=entry.digest, status=status, **fields)


def test_an_upload_sends_the_header_then_every_chunk_once(entry):
    verdict, parts = send(entry, lambda parts: receipt(entry, "accepted") if len(parts) == 51 else None)
    assert verdict.status == "accepted"
    assert parts[0] == "header"
    assert sorted(map(int, parts[1:])) == list(range(50))


def test_an_update_that_the_disk_has_damaged_is_not_sent(entry):
    """No chunk of it would be taken: it would be sent for ever."""
    damaged = bytearray(BLOB)
    damaged[7] ^= 1
    entry.payload.write_bytes(damaged)
    with pytest.raises(MissingObject, match=r"payload.bin: is damaged on this disk"):
        send(entry, lambda parts: receipt(entry, "accepted"))


def test_an_upload_that_hears_nothing_sends_its_header_again(entry):
    def judge(parts):
        return receipt(entry, "accepted") if parts.count("header") == 3 else None

    verdict, parts = send(entry, judge, patience_s=0.02)
    assert verdict.status == "accepted"
    assert len(parts) == 53  # no chunk twice


def test_an_upload_sends_what_is_named_as_missing(entry):
    def judge(parts):
        if parts.count("header") == 2 and parts[-1] == "header":
            return receipt(entry, "missing", missing=((7, 9), (40, 41), (48, 1000)))
        return receipt(entry, "accepted") if len(parts) == 57 else None

    verdict, parts = send(entry, judge, patience_s=0.05)
    assert verdict.status == "accepted"
    assert sorted(map(int, parts[52:])) == [7, 8, 40, 48, 49]


def test_a_verdict_on_the_header_spares_the_chunks(entry):
    verdict, parts = send(entry, lambda parts: receipt(entry, "rejected", reason="too-stale"))
    assert verdict.reason == "too-stale"
    assert len(parts) < 50
