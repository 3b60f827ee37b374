"""Parquet, by pyarrow; a batch of rows at a time."""

from collections.abc import Collection, Iterator
from pathlib import Path

from edge.errors import DataError, MissingExtra
from edge.training.data.faults import shorten
from edge.training.data.readers.row import Row

BATCH_ROWS = 256


def read_parquet(path: Path, wanted: Collection[str]) -> Iterator[Row]:
    """Reads the rows of a Parquet file; columns that are not wanted are named, and None.

    Raises:
        MissingExtra: pyarrow is not installed.
        DataError: The file cannot be read.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtra(f"{path} is Parquet, and pyarrow", "data") from error
    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            used = [name for name in names if name in wanted]
            number = 0
            for batch in file.iter_batches(BATCH_ROWS, columns=used):
                for row in batch.to_pylist() if used else [{}] * batch.num_rows:
                    number += 1
                    yield Row(number, dict.fromkeys(names) | row)
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        reason = shorten(str(error).strip().partition("\n")[0], 120)
        raise DataError(f"{path}: cannot be read as Parquet: {reason}") from error
