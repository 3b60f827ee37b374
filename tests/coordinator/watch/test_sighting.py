"""What a watcher sees: each kind of message in words, what stands behind it, hostile ones made harmless."""

import asyncio
import json
import re

import pytest
from msgspec import structs

from coordinator.watch.memory import MOST, Memory
from coordinator.watch.run import watch
from coordinator.watch.show import as_json, fit, lines
from coordinator.watch.sighting import KINDS, Chunk, Sighting, sight
from coordinator.watch.traffic import Traffic
from coordinator.watch.words import WORDS
from edge.privacy.terms import Terms
from edge.protocol.enrolment import AccessNotice, Enrol
from edge.protocol.messages import (
    Answer,
    Challenge,
    Hello,
    Manifest,
    Presence,
    Receipt,
    Recipe,
    Telemetry,
    UpdateHeader,
    Want,
    encode_message,
)
from edge.protocol.signing import Signer, new_key
from edge.protocol.topics import FORMS, BlobTopic, ChunkTopic, Topics
from edge.transport.base import Message
from edge.transport.memory import MemoryBroker, MemoryTransport

TOPICS = Topics("home")
KEY = new_key()
UPDATE, SHA = "cd" * 16, "ab" * 32
MANIFEST = Manifest(
    fleet="home", tier="r8", version=3, parent=2, sha256=SHA, root=SHA, size_bytes=70_000, chunk_bytes=65536,
    encoding="f16", base="00" * 32, rank=8, space="product", recipe=Recipe(steps=20),
    seal=SHA,
)  # fmt: skip
BARE = structs.replace(MANIFEST, seal=None, privacy=Terms(unit="device"))
HELLO = Hello(
    device_id="lamp", backend="torch", ranks=(8, 4), encodings=("f16",), memory_bytes=16 * 10**9,
    tokens_per_s=1204.4, base="00" * 32,
)  # fmt: skip
HEADER = UpdateHeader(
    update=UPDATE, fleet="home", device_id="lamp", tier="r8", base_version=3, base="00" * 32, attempt=0,
    sha256=SHA, root=SHA, size_bytes=27_600, chunk_bytes=10_000, encoding="int8", num_examples=160,
    num_tokens=9000, num_steps=20, seconds=7.5, loss_before=2.3104, loss_after=1.2,
)  # fmt: skip
REJECTED = Receipt(update=UPDATE, header=SHA, status="rejected", reason="too-stale", detail="21 versions")
SIGNER = Signer(KEY, 1)
UP = TOPICS.up("lamp", UPDATE, "header")
HELLO_TOPIC = TOPICS.device("lamp", "hello")
CASES = [
    (TOPICS.coordinator, Presence(online=True), "*coordinator is online"),
    (
        TOPICS.challenge,
        Challenge(nonce=UPDATE, session=UPDATE, host=""),
        "*somebody asks who coordinates this fleet",
    ),
    (
        TOPICS.device("lamp", "challenge"),
        Challenge(nonce=UPDATE, session=UPDATE, host=""),
        "lamp asks whether a copy of it is there",
    ),
    (
        TOPICS.answer,
        Answer(fleet="home", nonces=(UPDATE,), session=UPDATE, epoch=1, version=3, since=1.0, host="attic"),
        "*coordinator answers from host attic: at version 3",
    ),
    (TOPICS.device("lamp", "state"), Presence(online=False), "lamp is offline"),
    (
        TOPICS.version("r8"),
        MANIFEST,
        "*coordinator offers version 3, from 2: rank 8, 70.0 KB; 20 steps at 0.001",
    ),
    (
        TOPICS.version("r8"),
        BARE,
        "*coordinator offers version 3, from 2: rank 8, 70.0 KB; 20 steps at 0.001; hides each device; "
        "updates are not sealed",
    ),
    (
        TOPICS.device("lamp", "hello"),
        HELLO,
        "lamp says hello: torch, rank 8 at most, 16.0 GB, 1,204 tokens/s",
    ),
    (
        TOPICS.device("lamp", "want"),
        Want(sha256=SHA, ranges=((0, 2), (5, 6)), window=16),
        "lamp asks for version 3: chunks 0-1, 5 of 2",
    ),
    (
        TOPICS.up("lamp", UPDATE, "header"),
        HEADER,
        "lamp update cdcdcdcd on version 3: 27.6 KB, loss 2.31 to 1.20, 160 examples, int8",
    ),
    (
        TOPICS.up("lamp", UPDATE, "header"),
        structs.replace(HEADER, is_sealed=True, num_examples=0, loss_before=None, loss_after=None),
        "lamp update cdcdcdcd on version 3: 27.6 KB, sealed, int8",
    ),
    (
        TOPICS.up("lamp", UPDATE, "header"),
        structs.replace(HEADER, loss_before=None, loss_after=None),
        "lamp update cdcdcdcd on version 3: 27.6 KB, loss untold, int8",
    ),
    (
        TOPICS.device("lamp", "receipt"),
        REJECTED,
        "*coordinator rejected update cdcdcdcd of lamp: too-stale: 21 versions",
    ),
    (
        TOPICS.device("lamp", "receipt"),
        Receipt(update=UPDATE, header=SHA, status="missing", missing=((1, 3),)),
        "*coordinator lacks chunks 1-2 of 3 of update cdcdcdcd of lamp",
    ),
    (
        TOPICS.device("lamp", "telemetry"),
        Telemetry(base_version=3, step=2, steps=20, loss=1.5, tokens_per_s=512.2, memory_bytes=1),
        "lamp trains on version 3: step 2/20, loss 1.50, 512 tokens/s",
    ),
    (
        TOPICS.device("lamp", "telemetry"),
        Telemetry(base_version=3, step=2, steps=20, loss=None, tokens_per_s=512.2, memory_bytes=1),
        "lamp trains on version 3: step 2/20, 512 tokens/s",
    ),
    (TOPICS.device("lamp", "hello"), b"", "lamp takes its hello back"),
    (
        TOPICS.device("lamp", "receipt"),
        Receipt(update=UPDATE, header=SHA, status="busy"),
        "*coordinator has no room for update cdcdcdcd of lamp now",
    ),
    (TOPICS.device("lamp", "enrol"), Enrol(), "lamp tells of 0 changes of its key"),
    (
        TOPICS.device("lamp", "access"),
        AccessNotice(key=SHA, standing="enrolled", news="let in by its token"),
        "*coordinator tells lamp that its key abababababababab… is enrolled: let in by its token",
    ),
]


def test_every_kind_of_message_is_one_line_of_who_and_what() -> None:
    memory = Memory()
    show = lines(None, names_fleet=False)
    for topic, record, expected in CASES:
        payload = record if isinstance(record, bytes) else SIGNER.seal(topic, record)
        seen = sight(Message(topic, payload), memory)
        line = re.sub(" +", " ", show(seen))
        assert re.fullmatch(r"\d\d:\d\d:\d\d " + re.escape(expected), line), line
        told = json.loads(as_json(seen))
        assert told["topic"] == topic
        assert told["signature"] == ("valid" if b'"signature"' in payload else None)


@pytest.mark.parametrize(
    ("payload", "signature", "mark"),
    [
        (encode_message(HELLO), "missing", "[unsigned] says hello"),
        (
            SIGNER.seal(HELLO_TOPIC, HELLO).replace(b'"torch"', b'"honey"'),
            "invalid",
            "[bad signature] says hello: honey",
        ),
        (Signer(new_key(), 1).seal(HELLO_TOPIC, HELLO), "other-key", "[another key] says hello"),
    ],
)
def test_what_nobodys_key_stands_behind_is_marked(payload, signature, mark) -> None:
    memory = Memory()
    sight(Message(TOPICS.device("lamp", "hello"), SIGNER.seal(HELLO_TOPIC, HELLO)), memory)
    seen = sight(Message(TOPICS.device("lamp", "hello"), payload, retained=True), memory)
    assert seen.signature == signature
    line = lines(None, names_fleet=True)(seen)
    assert line[8] == "~"
    assert f"home/lamp    {mark}" in line


HOSTILE = [
    ("tunefleet/v2/home/device/\x1b[2J/hello", b"{}"),
    ("tunefleet/v2/home/device/*coordinator/state", b'{"online":true}'),
    ("tunefleet/v2/\u202egnp/coordinator", b'{"online":true}'),
    ("tunefleet/v2/home/device/lamp/hello", b"[" * 1_000_000),
    ("tunefleet/v2/home/device/lamp/hello", b'{"body":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    ("tunefleet/v2/home/device/lamp/state", b"\xff\x00\x1b[31m"),
    ("tunefleet/v2/home/device/lamp/receipt", encode_message(
        Receipt(
            update=UPDATE, header=SHA, status="rejected",
            detail="\x1b]0;own\x07\r\nfake \x9b31m [red]x[/red]\u2028",
        )
    )),
    ("tunefleet/v2/home/device/lamp/up/x/\u0663\u0663", b"chunk"),
    ("tunefleet/v2/home/blob/x/" + "9" * 5000, b""),
    ("tunefleet/v2", b""),
    ("elsewhere/\x00", b"\x00"),
]  # fmt: skip


@pytest.mark.parametrize(("topic", "payload"), HOSTILE)
def test_hostile_messages_are_shown_harmless(topic, payload) -> None:
    seen = sight(Message(topic, payload), Memory())
    if isinstance(seen, Chunk):
        traffic = Traffic(Memory())
        traffic.count(seen, 0.0)
        (seen,) = traffic.due(10.0)
    line = lines(80, names_fleet=True)(seen)
    assert line.isprintable()
    assert len(line) <= 80
    assert as_json(seen).isascii()
    assert "\n" not in as_json(seen)
    json.loads(as_json(seen))


def test_lines_are_cut_by_columns_and_not_by_characters() -> None:
    assert fit("水" * 50, 80) == "水" * 39 + "…"
    assert fit("x" * 80, 80) == "x" * 80
    assert fit("x" * 81, 80) == "x" * 79 + "…"
    assert fit("x" * 500, None) == "x" * 500


def test_chunks_are_one_line_a_transfer() -> None:
    memory = Memory()
    sight(Message(UP, SIGNER.seal(UP, HEADER)), memory)
    traffic = Traffic(memory)
    chunk = sight(Message(TOPICS.up("lamp", UPDATE, 0), b"x" * 10_000), memory)
    assert traffic.count(chunk, 0.0) is None
    assert traffic.due(0.5) == []
    assert [told.text for told in traffic.due(1.0)] == ["sends update cdcdcdcd: 1 chunk of 3, 10.0 KB"]
    assert traffic.due(9.0) == []
    assert traffic.count(chunk, 9.0) is None
    assert traffic.count(chunk, 9.1).text == "sent all of update cdcdcdcd: 3 chunks, 30.0 KB"
    assert traffic.count(chunk, 9.2) is None
    assert [told.text for told in traffic.due(20.0)] == [
        "sent parts of update cdcdcdcd again: 4 chunks of 3, 40.0 KB"
    ]
    unknown = Traffic(Memory())
    for number in range(60):
        unknown.count(chunk, number / 10)
    assert [told.text for told in unknown.due(5.95)] == ["sends update cdcdcdcd: 60 chunks, 600.0 KB"]


def test_what_strangers_make_it_remember_is_bounded() -> None:
    memory = Memory()
    traffic = Traffic(memory)
    for number in range(3 * MOST):
        traffic.count(sight(Message(TOPICS.up("lamp", f"{number:032x}", 0), b"x"), memory), 0.0)
        memory.is_known("home", f"device-{number}", "key")
    assert len(traffic.due(10.0)) == MOST
    assert not memory.is_known("home", f"device-{2 * MOST}", "another key")
    assert memory.is_known("home", f"device-{2 * MOST - 1}", "another key")  # its own is forgotten


def test_a_forged_manifest_names_no_transfer() -> None:
    memory = Memory()
    forged = SIGNER.seal(TOPICS.version("r8"), MANIFEST).replace(b'"version":3', b'"version":9')
    seen = sight(Message(TOPICS.version("r8"), forged), memory)
    assert isinstance(seen, Sighting)
    assert seen.signature == "invalid"
    want = encode_message(Want(sha256=SHA, ranges=(), window=1))
    assert "blob abababab…" in sight(Message(TOPICS.device("lamp", "want"), want), memory).text


def test_a_watcher_shows_what_was_kept_and_what_comes() -> None:
    said: list[str] = []

    async def run() -> None:
        broker = MemoryBroker()
        async with MemoryTransport(broker, "lamp") as lamp:
            await lamp.publish(TOPICS.device("lamp", "hello"), SIGNER.seal(HELLO_TOPIC, HELLO), retain=True)
            watcher = MemoryTransport(broker, "watch")
            watching = asyncio.create_task(
                watch(watcher, "home", lines(None, names_fleet=False), said.append)
            )
            async with asyncio.timeout(10):
                while not said:
                    await asyncio.sleep(0.01)
                for number in range(4):
                    await lamp.publish(TOPICS.up("lamp", UPDATE, number), b"x" * 100)
                while len(said) < 2:
                    await asyncio.sleep(0.01)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(run())
    assert "~lamp         says hello: torch" in said[0]
    assert " lamp         sends update cdcdcdcd: 4 chunks, 400 B" in said[1]


def test_every_topic_of_the_wire_has_its_words() -> None:
    assert set(FORMS) == set(KINDS) | {BlobTopic, ChunkTopic}
    assert {kind for kind, _, _ in KINDS.values()} == set(WORDS)
