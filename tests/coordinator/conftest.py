"""A small fleet made by hand: a base model, a coordinator in memory, devices that sign for themselves."""

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import Struct
from safetensors.numpy import save_file

from converters.adapter import Factors, LoraAdapter
from converters.formats.canonical import parse_adapter
from coordinator.announcing import coordinator_presence
from coordinator.config import CoordinatorConfig, read_config
from coordinator.ledger.schema import tables
from coordinator.ledger.sqlite import SqliteJournal
from coordinator.ledger.state import CoordinatorState, open_ledger
from coordinator.ledger.versions import VersionStore
from coordinator.merging.loop import Waits
from coordinator.observers.status import StatusNotes
from coordinator.observers.terminal import Terminal
from coordinator.server import Coordinator
from edge.protocol.chunks import num_chunks, split_chunks
from edge.protocol.codec import encode_adapter
from edge.protocol.merkle import Tree, proven_chunk
from edge.protocol.messages import Hello, Manifest, Receipt, UpdateHeader, Want
from edge.protocol.signing import Keyring, R, Signer, new_key, read_signed
from edge.protocol.topics import BlobTopic, ReceiptTopic, Topics, VersionTopic
from edge.transport.base import Message
from edge.transport.memory import MemoryBroker, MemoryTransport
from edge.transport.presence import SessionPresence

MODULES = tuple(f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj"))
CHUNK_BYTES = 1024


def random_delta(like: LoraAdapter, seed: int, size: float = 0.1) -> LoraAdapter:
    rng = np.random.default_rng(seed)
    return LoraAdapter(
        {
            name: Factors(
                (size * rng.standard_normal(f.a.shape)).astype(np.float32),
                (size * rng.standard_normal(f.b.shape)).astype(np.float32),
                f.scale,
            )
            for name, f in like
        }
    )


def opened(message: Message, kind: type[R]) -> R:
    return Keyring().open(message.topic, read_signed(message.payload), kind).record


class Device:
    """A device without a model: it downloads, invents a delta, and keeps every receipt it gets."""

    def __init__(
        self,
        broker: MemoryBroker,
        device_id: str,
        base: str,
        make_header: Callable[..., UpdateHeader],
        fleet: str = "home",
        epoch: int = 1,
        ranks: tuple[int, ...] = (4, 2),
    ) -> None:
        self.device_id = device_id
        self.base = base
        self.key = new_key()
        self.topics = Topics(fleet)
        self.fleet = fleet
        self.ranks = ranks
        self.signer = Signer(self.key, epoch)
        presence = SessionPresence(self.topics.device(device_id, "state"), self.signer)
        self.transport = MemoryTransport(broker, device_id, presence)
        self._make_header = make_header
        self.receipts: list[Receipt] = []
        self.manifests: dict[str, Manifest] = {}
        self.offered: dict[str, tuple[str, int]] = {}  # by sha256: root, and how many chunks
        self.chunks: dict[str, dict[int, bytes]] = {}
        self.num_chunks_seen = 0
        self.news = asyncio.Event()

    @asynccontextmanager
    async def joined(self) -> AsyncIterator["Device"]:
        async with self.transport:
            await self.transport.subscribe(self.topics.version("+"))
            await self.transport.subscribe(self.topics.device(self.device_id, "receipt"))
            await self.say("hello", self.hello(), retain=True)
            task = asyncio.create_task(self._listen())
            try:
                yield self
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def say(self, kind: str, record: Struct, *, retain: bool = False) -> None:
        topic = self.topics.device(self.device_id, kind)
        await self.transport.publish(topic, self.signer.seal(topic, record), retain=retain)

    def hello(self) -> Hello:
        return Hello(
            device_id=self.device_id,
            backend="none",
            ranks=self.ranks,
            encodings=("f32", "f16"),
            memory_bytes=1 << 30,
            tokens_per_s=None,
            base=self.base,
        )

    async def _listen(self) -> None:
        async for message in self.transport.messages():
            topic = self.topics.parse(message.topic)
            if isinstance(topic, VersionTopic):
                manifest = opened(message, Manifest)
                self.manifests[manifest.tier] = manifest
                for blob in filter(None, (manifest, manifest.sketch)):
                    total = num_chunks(blob.size_bytes, manifest.chunk_bytes)
                    self.offered[blob.sha256] = blob.root, total
            elif isinstance(topic, BlobTopic):
                self.num_chunks_seen += 1
                self.take_chunk(topic, message.payload)
            elif isinstance(topic, ReceiptTopic):
                self.receipts.append(opened(message, Receipt))
            self.news.set()

    def take_chunk(self, topic: BlobTopic, payload: bytes) -> None:
        root, total = self.offered[topic.sha256]
        chunk = proven_chunk(payload, topic.number, total, root)
        self.chunks.setdefault(topic.sha256, {})[topic.number] = chunk

    async def until(self, condition: Callable[[], Any]) -> Any:
        async with asyncio.timeout(10):
            while not (found := condition()):
                self.news.clear()
                await self.news.wait()
        return found

    async def manifest(self, version: int = 0, tier: str = "r4") -> Manifest:
        await self.until(lambda: self.manifests.get(tier) and self.manifests[tier].version >= version)
        return self.manifests[tier]

    async def download(self, manifest: Manifest) -> LoraAdapter:
        await self.transport.subscribe(self.topics.blob(manifest.sha256))
        total = -(-manifest.size_bytes // manifest.chunk_bytes)
        for start in range(0, total, 16):
            want = Want(sha256=manifest.sha256, ranges=((start, total),), window=16)
            await self.say("want", want)
            end = min(start + 16, total)
            wanted = set(range(start, end))
            await self.until(lambda w=wanted: w <= self.chunks.get(manifest.sha256, {}).keys())
        chunks = self.chunks[manifest.sha256]
        blob = b"".join(chunks[number] for number in range(total))
        assert hashlib.sha256(blob).hexdigest() == manifest.sha256
        return parse_adapter(blob)

    def header(self, manifest: Manifest, payload: bytes, attempt: int = 0, **changes: Any) -> UpdateHeader:
        settings = {
            "device_id": self.device_id, "fleet": self.fleet, "tier": manifest.tier, "base": self.base,
            "base_version": manifest.version, "attempt": attempt, "chunk_bytes": CHUNK_BYTES,
        }  # fmt: skip
        return self._make_header(payload, **settings | changes)

    async def prepare(
        self, size: float = 0.5, version: int = 0, tier: str = "r4", **changes: Any
    ) -> tuple[UpdateHeader, bytes]:
        """A header and a payload that fit the current version; every increment is `size`."""
        manifest = await self.manifest(version, tier)
        like = await self.download(manifest)
        delta = LoraAdapter(
            {name: Factors(np.full_like(f.a, size), np.full_like(f.b, size), f.scale) for name, f in like}
        )
        payload = encode_adapter(delta, "f32")
        return self.header(manifest, payload, **changes), payload

    async def send_header(self, header: UpdateHeader, key: bytes | None = None) -> None:
        topic = self.topics.up(self.device_id, header.update, "header")
        signer = Signer(key, 1) if key else self.signer
        await self.transport.publish(topic, signer.seal(topic, header))

    async def send_chunks(self, header: UpdateHeader, payload: bytes, numbers: range | None = None) -> None:
        tree = Tree(split_chunks(payload, header.chunk_bytes))
        for number, chunk in enumerate(split_chunks(payload, header.chunk_bytes)):
            if numbers is None or number in numbers:
                message = tree.proof(number) + chunk
                await self.transport.publish(self.topics.up(self.device_id, header.update, number), message)

    async def upload(self, header: UpdateHeader, payload: bytes) -> Receipt:
        await self.send_header(header)
        await self.send_chunks(header, payload)
        return await self.receipt(header.update)

    async def receipt(self, update: str, count: int = 1) -> Receipt:
        """The `count`-th receipt of an update."""

        def found() -> list[Receipt]:
            mine = [receipt for receipt in self.receipts if receipt.update == update]
            return mine if len(mine) >= count else []

        return (await self.until(found))[count - 1]

    async def teach(
        self, seed: int, version: int = 0, tier: str = "r4", **changes: Any
    ) -> tuple[Receipt, LoraAdapter]:
        """Downloads a version, invents a delta and delivers it."""
        return await self.learn(lambda adapter: random_delta(adapter, seed), version, tier, **changes)

    async def learn(
        self, train: Callable[[LoraAdapter], LoraAdapter], version: int = 0, tier: str = "r4", **changes: Any
    ) -> tuple[Receipt, LoraAdapter]:
        """Downloads a version, and delivers the delta that `train` makes of it."""
        manifest = await self.manifest(version, tier)
        delta = train(await self.download(manifest))
        payload = encode_adapter(delta, "f32")
        return await self.upload(self.header(manifest, payload, **changes), payload), delta


class Fleet:
    """One broker, one state folder, as many coordinators after each other as a test needs."""

    def __init__(self, folder: Path, base: Path, make_header: Callable[..., UpdateHeader]) -> None:
        self._make_header = make_header
        self.broker = MemoryBroker()
        self.folder = folder
        self.base = base
        self.said: list[str] = []
        self.now = 1_000_000.0
        self.set_by_s = 0.0  # how far somebody has set the machine's clock meanwhile

    def config(self, **changes: Any) -> CoordinatorConfig:
        settings = {
            "broker": "mqtt://127.0.0.1",
            "fleet": "home",
            "base": str(self.base),
            "state": str(self.folder),
            "ranks": (4, 2),
            "chunk_bytes": CHUNK_BYTES,
            "buffer_size": 2,
            "recipe": {"attempts": 0},  # a device made by hand sends as much as a test needs
        }
        return read_config(None, settings | changes)

    @asynccontextmanager
    async def serving(
        self,
        *,
        score: Any = None,
        calibrator: Any = None,
        observers: tuple[Any, ...] = (),
        **changes: Any,
    ) -> AsyncIterator[Coordinator]:
        config = self.config(**changes)
        with CoordinatorState(self.folder, config.fleet) as state:
            signer = state.begin_session(self.now)
            presence = coordinator_presence(config.fleet, signer)
            transport = MemoryTransport(self.broker, "coordinator", presence)
            coordinator = Coordinator(
                config,
                state,
                transport,
                signer=signer,
                score=score,
                calibrator=calibrator,
                observers=(
                    Terminal(lambda event: self.said.append(event.text)),
                    StatusNotes(state.journal),
                    *observers,
                ),
                clock=lambda: self.now + self.set_by_s,
                timer=lambda: self.now,
                waits=Waits(poll_s=0.02, settle_s=0.5, retry_s=0.05),
            )
            task = asyncio.create_task(coordinator.run())
            try:
                yield coordinator
                coordinator.stop()
                async with asyncio.timeout(10):
                    await task
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    @contextmanager
    def opened(self) -> Iterator[tuple[SqliteJournal, VersionStore]]:
        """Its state, beside a coordinator or after it."""
        with open_ledger(self.folder) as opened:
            yield opened

    def device(self, device_id: str, **changes: Any) -> Device:
        return Device(self.broker, device_id, self.fingerprint, self._make_header, **changes)

    @property
    def fingerprint(self) -> str:
        from converters.bases.read import read_base

        return read_base(self.base).fingerprint


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model of two layers, 12 wide."""
    folder = tmp_path / "base"
    folder.mkdir()
    rng = np.random.default_rng(0)
    weights = {f"{name}.weight": rng.standard_normal((12, 16)).astype(np.float32) for name in MODULES}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}))
    return folder


def age_journal(db: sqlite3.Connection, number: int) -> None:
    """Takes out of a journal what its schema has beyond an older one."""
    with closing(sqlite3.connect(":memory:")) as old:
        old.executescript(tables(number))
        wanted = _parts(old)
    for kind, table, column in sorted(_parts(db) - wanted, key=lambda part: part[0] == "table"):
        if kind == "column" and ("table", table, "") in wanted:
            db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        elif kind != "column":
            db.execute(f"DROP {kind} {table}")
    db.execute(f"PRAGMA user_version = {number}")


def _parts(db: sqlite3.Connection) -> set[tuple[str, str, str]]:
    named = db.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
    tables = [name for kind, name in named if kind == "table"]
    columns = {
        ("column", table, one[1]) for table in tables for one in db.execute(f"PRAGMA table_info({table})")
    }
    return {(kind, name, "") for kind, name in named} | columns


@pytest.fixture(scope="session")
def age() -> Callable[[sqlite3.Connection, int], None]:
    return age_journal


@pytest.fixture
def fleet(tmp_path: Path, base: Path, make_header: Callable[..., UpdateHeader]) -> Fleet:
    return Fleet(tmp_path / "state", base, make_header)
