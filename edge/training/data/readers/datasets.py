"""A dataset of Hugging Face's library that was saved to disk; its files stay mapped, and are not copied."""

from collections.abc import Collection, Iterator
from pathlib import Path

from edge.errors import DataError, MissingExtra
from edge.training.data.faults import shorten
from edge.training.data.readers.row import Row


def read_saved(path: Path, wanted: Collection[str]) -> Iterator[Row]:
    """Reads a folder that `Dataset.save_to_disk` wrote; unwanted columns are named, and None.

    Raises:
        MissingExtra: datasets is not installed.
        DataError: The folder cannot be read.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra(f"{path} is a dataset saved to disk, and datasets", "data") from error
    datasets.disable_progress_bars()
    try:
        found = datasets.load_from_disk(str(path.absolute())).with_format(None)
        names = found.column_names
        used = [name for name in names if name in wanted]
        rows = found.select_columns(used) if used else [{}] * found.num_rows
        for number, row in enumerate(rows, 1):
            yield Row(number, dict.fromkeys(names) | row)
    except (OSError, ValueError, KeyError, TypeError) as error:  # Arrow's errors are among them
        reason = shorten(str(error).strip().partition("\n")[0], 120)
        raise DataError(f"{path}: cannot be read as a saved dataset: {reason}") from error
