"""What a broker learns of updates: sizes and times, and ids."""

import asyncio
import json
import sqlite3
from contextlib import closing

import pytest

from edge.protocol.sealing import SEALED_BYTES
from edge.protocol.topics import Topics
from edge.transport.memory import MemoryTransport

TOPICS = Topics("home")
FACTS = ("num_examples", "num_tokens", "num_steps", "seconds", "loss_before", "loss_after")


def fleet(home, **settings):
    """Runs one device's one task under a broker that keeps all that passes."""
    seen = []

    async def listen():
        async with MemoryTransport(home.broker, "ear") as ear:
            await ear.subscribe(TOPICS.device("+", "#"))
            async for message in ear.messages():
                seen.append(message)

    async def way():
        listening = asyncio.create_task(listen())
        async with home.coordinator(max_versions=1, **settings), home.device(max_tasks=1) as device:
            await device.client.run()
            async with asyncio.timeout(30):  # its receipt comes before the version
                while not any(text.startswith("version 1") for text in home.said):
                    await asyncio.sleep(0.01)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        return device

    device = asyncio.run(way())
    assert len(device.of("accepted")) == 1
    headers = [json.loads(one.payload)["body"] for one in seen if one.topic.endswith("/header")]
    telemetry = [json.loads(one.payload)["body"] for one in seen if one.topic.endswith("/telemetry")]
    chunks = b"".join(one.payload for one in seen if "/up/" in one.topic and one.topic[-1].isdigit())
    return headers, telemetry, chunks


def journalled(home):
    with closing(sqlite3.connect(home.folder / "coordinator" / "journal.sqlite")) as db:
        query = f"SELECT {', '.join(FACTS)}, is_sealed, size_bytes, merged_into FROM updates"
        return db.execute(query).fetchone()


def test_by_default_updates_and_what_they_tell_are_for_the_coordinator_alone(home):
    headers, telemetry, chunks = fleet(home)
    assert headers
    for header in headers:
        assert header["is_sealed"]
        assert not set(FACTS) & header.keys()
    assert all(one["loss"] is None for one in telemetry)
    assert b"q_proj" not in chunks  # a safetensors header names its tensors
    *facts, is_sealed, _, merged_into = journalled(home)
    assert all(facts)
    assert (is_sealed, merged_into) == (1, 1)


def test_a_fleet_may_leave_its_updates_open_and_says_so_in_its_manifest(home):
    headers, _, chunks = fleet(home, sealing="off")
    assert all(set(FACTS) <= header.keys() and "is_sealed" not in header for header in headers)
    assert b"q_proj" in chunks
    assert journalled(home)[-3:-1] == (0, headers[0]["size_bytes"])


def test_a_seal_costs_the_same_bytes_whatever_is_in_it(home, tmp_path_factory):
    sealed = fleet(home)[0][0]["size_bytes"]
    other = type(home)(tmp_path_factory.mktemp("open"))
    assert sealed == fleet(other, sealing="off")[0][0]["size_bytes"] + SEALED_BYTES


@pytest.mark.parametrize("sealing", ["on", "aes"])
def test_a_seal_that_nobody_knows_is_told(home, sealing):
    with pytest.raises(Exception, match="expected one of hpke, off"):
        fleet(home, sealing=sealing)
