"""Results that are kept, a file for each run: a benchmark that was cut off goes on with what is missing.

A file's name holds a digest of every setting that decides its content, and only a run of the same settings
reads it. The code is not in the digest: after a change to it, runs are done anew where one asks for that.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

DIGEST_LETTERS = 12


def file_name(name: str, settings: object) -> str:
    """Returns the name of a result's file: the run's own name, and the digest of its settings."""
    digest = hashlib.sha256(msgspec.json.encode(settings, order="deterministic")).hexdigest()
    plain = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)
    return f"{plain}-{digest[:DIGEST_LETTERS]}.json"


def save_result(result: object, path: Path) -> None:
    """Writes a result as JSON; a file that is there is whole."""
    partial = path.with_suffix(".part")
    partial.write_bytes(msgspec.json.encode(result))
    partial.replace(path)


def others_note(folder: Path, wanted: Iterable[str]) -> str:
    """Says how many kept results of the same runs are not read, for other settings or an older form.

    Args:
        folder: Where results are kept.
        wanted: Names of the files that this benchmark reads or writes.
    """
    names = set(wanted)
    runs = {_run_of(name) for name in names}
    others = [path.name for path in folder.glob("*-*.json") if path.name not in names]
    count = sum(_run_of(name) in runs for name in others)
    return f"; {count} kept ones in {folder} are of other settings or an older form" if count else ""


def _run_of(name: str) -> str:
    return name.rpartition("-")[0]
