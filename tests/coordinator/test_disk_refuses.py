"""A coordinator whose disk says no waits for it, does all else meanwhile, and gives no receipt before."""

import asyncio
import sqlite3
from contextlib import closing, contextmanager

from coordinator.ledger.sqlite import FILE


@contextmanager
def locked(folder):
    """Another process holds the journal's lock."""
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield
        db.execute("ROLLBACK")


def test_a_foreign_lock_on_the_journal_is_waited_for_beside_the_messages(fleet):
    async def scenario():
        async with fleet.serving(buffer_size=1), fleet.device("x").joined() as x:
            header, payload = await x.prepare()
            with locked(fleet.folder):
                await x.send_header(header)
                await x.send_chunks(header, payload)
                fleet.now += 61  # manifests are due again
                x.manifests.clear()
                x.chunks.clear()
                async with asyncio.timeout(5):
                    await x.download(await x.manifest())
                await asyncio.sleep(0.5)
                assert not x.receipts
            await x.send_header(header)
            assert (await x.receipt(header.update)).status == "accepted"
            await x.manifest(version=1)
        assert sum("another process holds its lock; end that one" in line for line in fleet.said) in (1, 2)

    asyncio.run(scenario())


def test_a_version_that_is_made_is_announced_though_the_disk_refuses_to_tidy_up(fleet):
    async def scenario():
        async with fleet.serving(buffer_size=1, keep_versions=1), fleet.device("x").joined() as x:
            (fleet.folder / "objects" / "needless").mkdir()  # which is no file that can be removed
            for version in range(3):
                await x.teach(seed=version, version=version)
                await x.manifest(version=version + 1)

    asyncio.run(scenario())
