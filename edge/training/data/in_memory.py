"""Training data as plain calls take it: a path, or rows that are in memory already."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from edge.errors import DataError

Data = str | Path | Iterable[Mapping[str, Any]]
EXPECTED = 'expected a mapping such as {"prompt": …, "completion": …}'


@contextmanager
def data_file(data: Data, name: str = "data") -> Iterator[Path]:
    """Gives a file of `data` while it is needed: its own, or rows as JSONL in a folder that goes afterwards.

    Args:
        data: A path, or rows: mappings of column names to what JSON can hold.
        name: Stands in errors for rows that come from no file.

    Raises:
        DataError: A row is no mapping or holds what is no JSON; or as the caller's, with `name` in it.
    """
    if isinstance(data, str | Path):
        yield Path(data)
        return
    with TemporaryDirectory(prefix="tunefleet-") as folder:
        path = Path(folder) / "rows.jsonl"
        save_rows(data, path, name)
        try:
            yield path
        except DataError as error:
            raise DataError(str(error).replace(str(path), name)) from error


def save_rows(rows: Iterable[Mapping[str, Any]], path: Path, name: str = "data") -> None:
    """Writes rows as JSONL, one a line.

    Raises:
        DataError: A row is no mapping, or holds what is no JSON.
    """
    with path.open("wb") as file:
        for number, row in enumerate(rows, 1):
            file.write(_line(row, number, name))


def _line(row: Mapping[str, Any], number: int, name: str) -> bytes:
    if not isinstance(row, Mapping):
        table = "; of a table give table.to_dict('records')" if isinstance(row, str) else ""
        raise DataError(f"{name}: row {number} is {type(row).__name__}, {EXPECTED}{table}")
    try:
        return msgspec.json.encode(dict(row)) + b"\n"
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise DataError(f"{name}: row {number} cannot be written as JSON: {error}") from error
