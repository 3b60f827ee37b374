"""Rows of a file or folder of any known kind, one after the other, numbered as their user counts them.

A row that cannot be read is handed on as such, so that all of them are told at once; a file that cannot be
read is an error. What a file is, its first bytes say, and its name only where they cannot.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from edge.errors import DataError
from edge.training.data.faults import shorten
from edge.training.data.readers.datasets import read_saved
from edge.training.data.readers.delimited import read_delimited
from edge.training.data.readers.folders import is_saved_dataset, locate
from edge.training.data.readers.json_rows import read_array, read_lines
from edge.training.data.readers.pyarrow import read_parquet
from edge.training.data.readers.row import BOM, Row

HEAD_BYTES = 4096
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv")
_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("zip", "unzip"),
}
_KINDS = "expected JSONL, a JSON array, CSV (.csv or .tsv), Parquet (.parquet), or a folder of them"


class Rows(NamedTuple):
    """All rows of a file."""

    path: str
    unit: str  # what numbers count: `line` or `row`
    rows: Iterator[Row]


def open_rows(path: str, wanted: Collection[str]) -> Rows:
    """Opens a file, or what training reads of a folder.

    Args:
        path: Of the file or folder.
        wanted: Columns of interest; of others a table need only give the names.

    Raises:
        DataError: It is not there, cannot be read, or is of no known kind; also while its rows are read.
        MissingExtra: A library is needed to read it.
    """
    found = locate(Path(path))
    return Rows(str(found), *_open(found, wanted))


def _open(path: Path, wanted: Collection[str]) -> tuple[str, Iterator[Row]]:
    if is_saved_dataset(path):
        return "row", read_saved(path, wanted)
    head = _head(path)
    if head.startswith(b"PAR1") or path.suffix == ".parquet":
        return "row", read_parquet(path, wanted)
    _check_text(path, head)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return "line", read_delimited(path)
    first = head.removeprefix(BOM).lstrip()
    if first.startswith(b"["):
        return "row", read_array(path)
    if first and not first.startswith(b"{") and path.suffix.lower() not in JSON_SUFFIXES:
        begins = shorten(first.decode(errors="replace").partition("\n")[0])
        raise DataError(f"{path}: begins with {begins!r}, which is not JSON; {_KINDS}")
    return "line", read_lines(path)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _check_text(path: Path, head: bytes) -> None:
    for magic, (name, command) in _PACKED.items():
        if head.startswith(magic):
            raise DataError(f"{path}: is compressed with {name}; unpack it first: {command} {path.name}")
    encoding = _wide_encoding(head)
    if encoding:
        raise DataError(
            f"{path}: is {encoding} text, expected UTF-8; convert it: "
            f"iconv -f {encoding} -t UTF-8 {path.name} > utf8-{path.name}"
        )
    if b"\0" in head:
        raise DataError(f"{path}: is a binary file; {_KINDS}")


def _wide_encoding(head: bytes) -> str | None:
    """Recognises UTF-16 and UTF-32 by their marks, or by a zero in every second byte, as English has it."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    even, odd = head[:16:2], head[1:16:2]
    if odd and all(even) and not any(odd):
        return "UTF-16LE"
    return "UTF-16BE" if odd and all(odd) and not any(even) else None
