"""A whole copy of a coordinator's state folder, made while the coordinator runs.

Copying the folder itself would catch journal and write-ahead log at different moments. Here SQLite copies the
journal as of one moment. What it refers to never changes and is copied afterwards; where a file has gone by
then, because a version was made and an old one collected, the journal is copied again. Updates that are still
being received are left out: their devices send them again.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from msgspec import Struct

from coordinator.events.pace import KEY as PACE
from coordinator.ledger.sqlite import FILE, SqliteJournal
from coordinator.ledger.state import OBJECTS, UPDATES, open_ledger
from edge.errors import StateError
from edge.storage.disk import room_for, sync_folder
from edge.storage.identity import FILE as KEY

Copy = Callable[[Path, Path], None]


class Backup(Struct, frozen=True):
    """What was copied."""

    path: str
    version: int | None  # the current one; None before the first
    waiting: int  # accepted updates that are in no version yet
    num_files: int
    size_bytes: int


def copy_file(source: Path, target: Path) -> None:
    """Copies a file with its mode to a new one, through to the disk."""
    with source.open("rb") as old:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, source.stat().st_mode & 0o777)
        with os.fdopen(descriptor, "wb") as new:
            shutil.copyfileobj(old, new)
            new.flush()
            os.fsync(new.fileno())


def make_backup(state: Path, out: Path, copy: Copy = copy_file) -> Backup:
    """Copies a state folder to `out`, which is then one itself; it is there whole or not at all.

    Args:
        state: Of a coordinator that may be running.
        out: New, or an empty folder.
        copy: Copies one file to a new one.

    Raises:
        StateError: `state` is no coordinator's, or lacks files; or something is at `out`.
        DiskRefused: There is no room.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise StateError(f"{out}: is not empty; give a folder that is new")
    draft = out.absolute().parent / f".{out.absolute().name}.partial"
    with closing(SqliteJournal(state)) as journal, room_for("a backup", out):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700, parents=True)
        try:
            backup = _copy_state(state, journal, draft, copy)
            sync_folder(draft)
            draft.rename(out)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_folder(draft.parent)
    return Backup(str(out), *backup)


def _copy_state(
    state: Path, journal: SqliteJournal, draft: Path, copy: Copy
) -> tuple[int | None, int, int, int]:
    missing = ""
    while True:
        (draft / FILE).unlink(missing_ok=True)
        journal.copy(draft / FILE)
        with open_ledger(draft) as (copied, versions):
            current, waiting = versions.current(), copied.waiting()
            copied.note(PACE, None)  # nobody runs there
            names = [f"{OBJECTS}/{sha256}" for one in versions.kept() for sha256 in one.files]
            inside = copied.payloads()
            names += [f"{UPDATES}/{update.id}" for update in waiting if update.id not in inside]
        wanted = dict.fromkeys([KEY, *names])
        gone = _copy_files(state, draft, wanted, copy)
        if not gone:
            break
        if gone == missing:
            raise StateError(f"{state / gone}: is missing, and the journal refers to it; nothing was copied")
        missing = gone
    _remove_others(draft, wanted)
    sizes = [path.stat().st_size for path in draft.rglob("*") if path.is_file()]
    return current.version if current else None, len(waiting), len(sizes), sum(sizes)


def _copy_files(state: Path, draft: Path, wanted: Mapping[str, None], copy: Copy) -> str:
    """Copies what is not there yet; returns the name of the first file that has gone, or nothing."""
    for name in wanted:
        target = draft / name
        if target.exists():
            continue
        target.parent.mkdir(exist_ok=True)
        try:
            copy(state / name, target)
        except FileNotFoundError:
            return name
    return ""


def _remove_others(draft: Path, wanted: Mapping[str, None]) -> None:
    for folder in (draft / OBJECTS, draft / UPDATES):
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if str(path.relative_to(draft)) not in wanted:
                path.unlink()
        sync_folder(folder)
