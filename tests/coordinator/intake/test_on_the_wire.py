"""Updates on their way in, from a device made by hand to the journal of a whole coordinator."""

import asyncio
import hashlib
import resource
from contextlib import AsyncExitStack, contextmanager

import pytest

from edge.protocol.messages import encode_message
from edge.protocol.signing import new_key
from edge.transport.memory import MemoryBroker


@pytest.mark.parametrize("again", ["header", "header and chunks"])
def test_a_repeated_update_counts_once(fleet, again):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            header, payload = await x.prepare()
            assert (await x.upload(header, payload)).status == "accepted"
            await x.send_header(header)
            if again == "header and chunks":
                await x.send_chunks(header, payload)
            assert (await x.receipt(header.update, count=2)).status == "accepted"
            with fleet.opened() as (journal, _):
                assert len(journal.waiting()) == 1

    asyncio.run(scenario())


def test_a_rejected_update_is_rejected_again_for_the_same_reason(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            header, _ = await x.prepare(base="0" * 64)
            await x.send_header(header)
            first = await x.receipt(header.update)
            await x.send_header(header)
            assert first.reason == "foreign-base"
            assert await x.receipt(header.update, count=2) == first
            assert first.header == hashlib.sha256(encode_message(header)).hexdigest()

    asyncio.run(scenario())


def test_a_repeated_header_is_told_what_is_missing(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            header, payload = await x.prepare()
            await x.send_header(header)
            await x.send_chunks(header, payload, range(1, 2))
            await x.send_header(header)
            receipt = await x.receipt(header.update)
            total = -(-len(payload) // header.chunk_bytes)
            assert (receipt.status, receipt.missing) == ("missing", ((0, 1), (2, total)))
            await x.send_chunks(header, payload)
            assert (await x.receipt(header.update, count=2)).status == "accepted"

    asyncio.run(scenario())


def test_what_is_whole_at_the_start_is_admitted_without_its_device(fleet):
    async def scenario():
        async with fleet.device("x").joined() as x:
            async with fleet.serving(limits={"small_bytes": 0}):
                header, payload = await x.prepare()
                await x.send_header(header)
                await x.send_chunks(header, payload, range(1))
                await x.send_header(header)
                await x.receipt(header.update)
            (part,) = (fleet.folder / "incoming").glob("*.part")
            part.write_bytes(payload)  # as when killed just after the last chunk
            async with fleet.serving(limits={"small_bytes": 0}):
                assert (await x.receipt(header.update, count=2)).status == "accepted"

    asyncio.run(scenario())


def test_nothing_is_counted_twice_or_lost_over_a_bad_network(fleet):
    fleet.broker = MemoryBroker(3, loss=0.1, repeat=0.2, reorder=0.3)

    async def deliver(device, attempt):
        async def once():
            header, payload = await device.prepare(attempt=attempt)
            while True:
                await device.send_header(header)
                await device.send_chunks(header, payload)
                await asyncio.sleep(0.05)
                final = [r for r in device.receipts if r.update == header.update and r.status != "missing"]
                if final:
                    return final[0].status

        while True:  # a lost chunk of the download is asked for again
            try:
                async with asyncio.timeout(1):
                    return await once()
            except TimeoutError:
                continue

    async def scenario():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(fleet.serving(buffer_size=100))
            devices = [await stack.enter_async_context(fleet.device(name).joined()) for name in "xyz"]
            found = await asyncio.gather(*(deliver(device, n) for device in devices for n in range(3)))
            assert found == ["accepted"] * 9
        with fleet.opened() as (journal, _):
            assert len(journal.waiting()) == 9

    asyncio.run(scenario())


def test_a_stranger_can_neither_spoil_nor_receipt_anothers_update(fleet):
    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            header, payload = await x.prepare()
            await x.send_header(header)
            await x.send_header(header, key=new_key())
            await x.send_chunks(header, payload)
            assert (await x.receipt(header.update)).status == "accepted"
            await x.send_header(header, key=new_key())
            await x.send_header(header)
            assert (await x.receipt(header.update, count=2)).status == "accepted"
            assert len(x.receipts) == 2
        with fleet.opened() as (journal, _):
            assert journal.refusals() == []
        assert any("device/up: x has key" in line or "x has key" in line for line in fleet.said)

    asyncio.run(scenario())


def test_who_is_not_listed_is_answered_by_nothing_and_leaves_no_trace_but_a_line(fleet):
    async def scenario():
        async with (
            fleet.serving(enrolment="closed", devices={"y": "0" * 64}),
            fleet.device("x").joined() as x,
        ):
            manifest = await x.manifest()
            header = x.header(manifest, b"delta")
            for _ in range(3):
                await x.send_header(header)
            await asyncio.sleep(0.2)
            assert x.receipts == []
        with fleet.opened() as (journal, _):
            assert (journal.refusals(), journal.devices()) == ([], [])
        told = [line for line in fleet.said if "was not let in, and enrolment is closed" in line]
        assert any(x.signer.key in line for line in told)

    asyncio.run(scenario())


def test_a_payload_that_contradicts_its_header_is_rejected_and_gone(fleet):
    """Its chunks are those that the device announced, and the whole is not."""

    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x:
            header, payload = await x.prepare(sha256="0" * 64)
            receipt = await x.upload(header, payload)
            assert (receipt.status, receipt.reason) == ("rejected", "hash-mismatch")
            assert not list((fleet.folder / "updates").iterdir())
            assert not list((fleet.folder / "incoming").iterdir())

    asyncio.run(scenario())


@contextmanager
def files_of_at_most(size_bytes):
    """As on a full disk: no file of this process grows beyond that size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("what", "small_bytes"), [("everything", 0), ("the journal", 0), ("the journal", 1 << 16)]
)
def test_with_a_full_disk_nothing_is_receipted_and_nothing_is_lost(fleet, what, small_bytes):
    async def scenario():
        async with fleet.serving(limits={"small_bytes": small_bytes}), fleet.device("x").joined() as x:
            header, payload = await x.prepare()
            await x.send_header(header)
            await x.send_header(header)
            await x.receipt(header.update)
            wal = (fleet.folder / "journal.sqlite-wal").stat().st_size
            assert wal > 2 * len(payload)
            with files_of_at_most(1 if what == "everything" else wal):
                await x.send_chunks(header, payload)
                await asyncio.sleep(0.2)
                assert [receipt.status for receipt in x.receipts] == ["missing"]
                told = [line for line in fleet.said if "nothing is receipted" in line]
                assert len(told) == (1 if what == "the journal" else len(told))
            await x.send_header(header)
            if what == "everything":
                await x.receipt(header.update, count=2)
                await x.send_chunks(header, payload)
            final = await x.receipt(header.update, count=3 if what == "everything" else 2)
            assert final.status == "accepted"

    asyncio.run(scenario())
