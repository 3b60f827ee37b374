"""JSON: one object a line, or an array of objects.

Of an array only the file's bytes are held, not its objects: each is decoded when it is its turn.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edge.errors import DataError
from edge.training.data.faults import Unusable, kind_of, shorten
from edge.training.data.readers.row import BOM, Row

MAX_WHOLE_BYTES = 1 << 28  # of a file that is looked into only to say what it is
NO_JSON = "are not JSON"
_PYTHONS = (b"NaN", b"Infinity")  # Python writes them unless it is told not to
_RAW = msgspec.json.Decoder(list[msgspec.Raw])


def read_lines(path: Path) -> Iterator[Row]:
    """Reads the rows of a JSONL file; blank lines count, and are passed over.

    Raises:
        DataError: The file cannot be read, or is one JSON object over many lines.
    """
    is_first = True
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                content = line.removeprefix(BOM) if number == 1 else line
                if not content.strip():
                    continue
                columns = _decode(content)
                if is_first and isinstance(columns, Unusable) and columns.reason == NO_JSON:
                    _check_whole(path)
                is_first = False
                yield Row(number, columns)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def read_array(path: Path) -> Iterator[Row]:
    """Reads the rows of a file that is one JSON array.

    Raises:
        DataError: The file cannot be read, or is not JSON, and where.
    """
    try:
        content = path.read_bytes().removeprefix(BOM)
        entries = _RAW.decode(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise DataError(f"{path}: is nested too deeply to be read") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: begins as a JSON array, and is none: {_where(error, content)}") from error
    for number, entry in enumerate(entries, 1):
        yield Row(number, _decode(entry))


def _decode(content: bytes | msgspec.Raw) -> dict[str, Any] | Unusable:
    try:
        row = msgspec.json.decode(content)
    except UnicodeDecodeError:
        return Unusable("are not UTF-8")
    except RecursionError:
        return Unusable("are nested too deeply to be read")
    except msgspec.ValidationError:
        return Unusable("hold a number that is too large for JSON")
    except msgspec.DecodeError:
        is_python = any(word in bytes(content) for word in _PYTHONS)
        return Unusable("hold NaN or Infinity, which JSON lacks" if is_python else NO_JSON)
    if isinstance(row, dict):
        return row
    return Unusable(f"hold {kind_of(row)}, expected an object")


def _where(error: Exception, content: bytes) -> str:
    """Gives msgspec's reason, with the line instead of the byte."""
    reason, _, place = str(error).removeprefix("JSON is malformed: ").partition(" (byte ")
    if not place.endswith(")") or not place[:-1].isdecimal():
        return reason[:1].lower() + reason[1:]
    line = content.count(b"\n", 0, int(place[:-1])) + 1
    return f"line {line}: {reason}"


def _check_whole(path: Path) -> None:
    """Tells of a file that is JSON, but neither lines nor an array.

    Raises:
        DataError: It is one object.
    """
    if path.stat().st_size > MAX_WHOLE_BYTES:
        return
    try:
        found = msgspec.json.decode(path.read_bytes().removeprefix(BOM), type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    names = shorten(", ".join(found), 60)
    raise DataError(f"{path}: holds one JSON object ({names}), expected an array of objects, or one a line")
