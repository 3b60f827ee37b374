"""State folders: what a device and a coordinator find on their disks, and a backup's journal.

They begin as the folders that the release before wrote, so that these open is tried along with it.
"""

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random

import msgspec
from rich.console import Console

from benchmarks.faults.fuzz.decoders.folder import Replaced
from benchmarks.faults.fuzz.mutation import Form
from benchmarks.faults.fuzz.target import Target
from converters.errors import TunefleetError
from coordinator.intake.open_uploads import Uploads
from coordinator.ledger.sqlite import FILE
from coordinator.ledger.state import CoordinatorState, open_ledger
from coordinator.observers.history import rejections, version_status
from coordinator.observers.status import fleet_status
from coordinator.observers.tables import history_view, status_view
from edge.device.state import DeviceState, Memory
from edge.protocol.merkle import Tree
from edge.storage.parts import PartFile
from edge.storage.spool import Spool
from edge.training.checkpoint import checkpoint_precision, load_checkpoint
from edge.training.local_run.run import trained_asking

WRITTEN = Path(__file__).parents[4] / "tests/fleet/clients/release_before"
DEVICE_FILES: tuple[tuple[str, str, Form, int], ...] = (
    ("lock", "state.json", "json", 6),
    ("lock", "identity.key", "bytes", 1),
    ("fan", "spool/*/header.json", "json", 3),
    ("fan", "spool/*/residual.safetensors", "tensors", 2),
    ("fan", "spool/*/payload.bin", "bytes", 1),
    ("lamp", "residual.safetensors", "tensors", 2),
)


def targets(root: Path) -> Iterator[Target]:
    """Lists the readers of state folders; files lie below `root`."""
    root = root / "folders"
    shutil.copytree(WRITTEN, root)
    for device, pattern, form, weight in DEVICE_FILES:
        path = next((root / device).glob(pattern))
        name = str(path.relative_to(root / device))
        memory = msgspec.json.decode((root / device / "state.json").read_bytes())
        fresh = Memory(fleet="home", device_id=memory["device_id"], base=memory["base"])
        decode = Replaced(root / device, name, partial(_open_device, fresh))
        renewed = root / f"{device}-renewed-{path.name}"  # as this release writes it
        shutil.copytree(root / device, renewed)
        _open_device(fresh, renewed)
        seeds = list(dict.fromkeys([path.read_bytes(), (renewed / name).read_bytes()]))
        yield Target(f"state/{device}/{path.name}", form, seeds, decode, weight)
    task = next((root / "lock" / "task").iterdir())
    checkpoint = (task / "checkpoint.safetensors").read_bytes()
    header = int.from_bytes(checkpoint[:8], "little")
    metadata = msgspec.json.decode(checkpoint[8 : 8 + header])["__metadata__"]
    (known,) = (msgspec.json.decode(text)["task"] for text in metadata.values())
    decode = Replaced(task, "checkpoint.safetensors", partial(_load_checkpoint, known))
    yield Target("state/lock/checkpoint.safetensors", "tensors", [checkpoint], decode, 2)
    metrics = b'{"adapter":"adapter","asking":"chat","loss":1.5}'
    decode = Replaced(task, "metrics.json", trained_asking)
    yield Target("state/lock/metrics.json", "json", [metrics], decode, 2)
    yield from _coordinator_targets(root / "coordinator")


def _coordinator_targets(folder: Path) -> Iterator[Target]:
    script = (folder / "journal.sql").read_text()
    with closing(sqlite3.connect(folder / FILE)) as db:
        db.executescript(script)
        texts = [text.encode() for text in _texts(db)]
    journal = (folder / FILE).read_bytes()
    yield Target(
        "ledger/rows", "json", [text for text in texts if text[:1] in (b"{", b"[")], _Rows(folder), 4
    )
    yield Target("ledger/journal", "bytes", [journal], Replaced(folder, FILE, _show), 1)
    (header,) = (folder / "incoming").glob("*.header")
    for path, form in ((header, "json"), (header.with_suffix(".part"), "bytes")):
        decode = Replaced(folder, str(path.relative_to(folder)), _recover)
        yield Target(f"ledger/incoming{path.suffix}", form, [path.read_bytes()], decode, 2)  # type: ignore[arg-type]
    yield Target("ledger/identity.key", "bytes", [b"0" * 64], Replaced(folder, "identity.key", _recover), 1)
    one = next((folder / "objects").iterdir())
    decode = Replaced(folder, f"objects/{one.name}", _show)
    yield Target("ledger/object", "tensors", [one.read_bytes()], decode, 2)


def _open_device(fresh: Memory, folder: Path) -> None:
    with DeviceState(folder, fresh) as state:
        spool = Spool(state.spool, state.residual)
        spool.entries()
        spool.residual()


def _load_checkpoint(task: str, folder: Path) -> None:
    checkpoint_precision(folder)
    load_checkpoint(folder, task)


def _recover(folder: Path) -> None:
    with CoordinatorState(folder, "home") as state:
        state.recover()
        uploads = Uploads(state.incoming, state.updates, 8)
        uploads.recover(state.journal)
        uploads.whole()


def _show(folder: Path) -> None:
    """Reads all that reports are made of, and lays them out."""
    console = Console(width=100, quiet=True)
    with open_ledger(folder) as (journal, versions):
        report = fleet_status(journal, versions, 0.0)
        console.print(status_view(100, report=report, now=0.0))
        history = versions.history()
        told = [version_status(version) for version in history]
        console.print(history_view(100, versions=told, rejections=rejections(journal, 100)))
        msgspec.json.encode((report, told))
        for version in history:
            try:
                versions.state(version)
                versions.whole(version)
            except TunefleetError:
                continue


def _texts(db: sqlite3.Connection) -> Iterator[str]:
    for table, column in _columns(db):
        yield from (
            text for (text,) in db.execute(f"SELECT {column} FROM {table}") if isinstance(text, str) and text
        )


def _columns(db: sqlite3.Connection) -> list[tuple[str, str]]:
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [
        (table, column)
        for table in tables
        if not table.startswith("sqlite_")
        for _, column, *_ in db.execute(f"PRAGMA table_info({table})")
    ]


class _Rows:
    """Puts an input into a field of the journal, which one the input itself decides, and reads it all."""

    def __init__(self, folder: Path) -> None:
        self._replaced = Replaced(folder, "input", self._read)

    def __call__(self, content: bytes) -> None:
        self._replaced(content)

    def _read(self, folder: Path) -> None:
        content = (folder / "input").read_bytes()
        random = Random(hashlib.sha256(content).digest())
        value: object = content.decode("utf-8", "replace") if random.random() < 0.9 else content
        with closing(sqlite3.connect(folder / FILE)) as db:
            table, column = random.choice(_columns(db))
            rows = db.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
            rowid, before = random.choice(rows) if rows else (None, None)
            try:
                with db:
                    db.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, rowid))
            except sqlite3.Error:  # a key, or what must not be null
                return
        try:
            _show(folder)
        finally:
            with closing(sqlite3.connect(folder / FILE)) as db, db:
                db.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (before, rowid))


def part_target(root: Path) -> Target:
    """Lists the reader of a part file under way; files lie below `root`."""
    folder = root / "part"
    folder.mkdir()
    content = bytes(range(256)) * 8
    sha256 = hashlib.sha256(content).hexdigest()
    chunks = [content[:1024], content[1024:]]
    tree = Tree(chunks)
    part = PartFile(folder / "one.part", len(content), 1024, sha256, tree.root)
    part.write(0, tree.proof(0) + chunks[0])

    def read(path: Path) -> None:
        found = PartFile(path / "one.part", len(content), 1024, sha256, tree.root)
        found.write(1, tree.proof(1) + chunks[1])
        if found.received.is_complete:
            found.finish(path / "whole")

    seed = (folder / "one.part").read_bytes()
    return Target("state/part", "bytes", [seed], Replaced(folder, "one.part", read), 3)
