"""The demo's folder as a whole: a new one for every run, and what an interrupted run leaves in it."""

import contextlib
import itertools
import shutil
from pathlib import Path

from coordinator.demo.files import Paths
from coordinator.demo.fleet.record import read_record
from edge.errors import ConfigError

MARK = ".tunefleet-demo"  # a folder that bears it is a demo's


def fresh_folder(out: Path) -> Path:
    """Makes a new folder: `out`, or `out-2` and so on beside the runs that are there.

    Raises:
        ConfigError: There is something else.
    """
    if out.is_file():
        raise ConfigError(f"{out}: is a file; give another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise ConfigError(f"{out}: is not empty, and no earlier demo's; give another --out")
    named = out if out.name not in ("", "..") else out.resolve()
    for number in itertools.count(1):
        folder = named if number == 1 else named.with_name(f"{named.name}-{number}")
        with contextlib.suppress(FileExistsError):  # a file, or a run that began just now
            folder.mkdir(parents=True, exist_ok=True)
            if not any(folder.iterdir()):
                (folder / MARK).touch(exist_ok=False)
                break
    return folder


def leave(folder: Path, forms: list[str]) -> str:
    """Clears the folder of a run that has no version yet; else returns a line that says what it holds."""
    paths = Paths(folder)
    newest = max((version.version for version in read_record(paths.state).versions), default=0)
    if newest == 0:
        _clear(folder)
        return "stopped before the fleet's first version; nothing is kept"
    written = [form.upper() for form in forms if paths.adapter(form).exists()]
    adapter = f"the adapter as {', '.join(written)}, " if written else ""
    return (
        f"stopped; kept in {folder}/: {adapter}configurations, logs, and versions 0 to {newest} "
        f"(tunefleet history --state {paths.state})"
    )


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    with contextlib.suppress(OSError):  # it is the working directory, or somebody has put something there
        folder.rmdir()
