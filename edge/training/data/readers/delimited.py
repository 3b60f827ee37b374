"""CSV and TSV with a header, as spreadsheets and pandas write them."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge.errors import DataError
from edge.training.data.faults import Unusable, shorten
from edge.training.data.readers.row import Row

DELIMITERS = ",;\t"
MAX_FIELD_CHARS = (1 << 31) - 1  # the module's own bound is 131,072: shorter than a chapter


def read_delimited(path: Path) -> Iterator[Row]:
    """Reads the rows below the header, numbered by the line in which each begins.

    Raises:
        DataError: The file cannot be read, or its header names a column twice.
    """
    csv.field_size_limit(MAX_FIELD_CHARS)
    try:
        # Bytes that are no UTF-8 come as surrogates: `forms.py` finds them in the columns that are used.
        with path.open("r", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            header_line = file.readline()
            file.seek(0)
            # Strict: otherwise a quote that is never closed would swallow the rest of the file in silence.
            reader = csv.reader(file, delimiter=_delimiter(path, header_line), strict=True)
            header = _header(path, reader)
            yield from _rows(reader, header)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _delimiter(path: Path, header: str) -> str:
    """Finds what cuts the header into most columns; spreadsheets in Europe write semicolons."""
    return "\t" if path.suffix.lower() == ".tsv" else max(DELIMITERS, key=header.count)


def _header(path: Path, reader: Any) -> list[str]:
    try:
        header: list[str] = next(reader, [])
    except csv.Error as error:
        raise DataError(f"{path}: its header is not CSV: {shorten(str(error), 80)}") from error
    names = [name for name in header if name]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: its header names the column {shorten(twice)!r} twice; rename one")
    return header


def _rows(reader: Any, header: list[str]) -> Iterator[Row]:
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield Row(number, Unusable("are not CSV: a quote stands alone or is never closed"))
            continue
        if not fields:  # a blank line
            continue
        if len(fields) != len(header):
            yield Row(number, Unusable("have more or fewer fields than the header"))
            continue
        yield Row(number, dict(zip(header, fields, strict=True)))
