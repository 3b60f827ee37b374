"""Which file of a folder is meant: an mlx-lm folder, or what `datasets` saved to disk."""

from pathlib import Path
from typing import Any

from converters.files.content import read_content
from converters.files.text import decode_record
from edge.errors import DataError

TRAIN = ("train",)
HELD_OUT = ("valid", "validation", "test")  # mlx-lm's name first
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_MAX_NAMED = 5


def locate(path: Path, *, is_held_out: bool = False) -> Path:
    """Finds the file that `path` names, or the folder of one saved dataset.

    Args:
        path: Of a file, of a folder with `train.jsonl` (or .json, .csv, .tsv, .parquet), of a saved dataset,
            or of several that were saved together.
        is_held_out: Of a folder with several parts the one for validation or tests is meant.

    Raises:
        DataError: There is nothing, or no such part, and what there is instead.
    """
    try:
        if path.is_file() or is_saved_dataset(path):
            return path
        if path.is_dir():
            return _part(path, HELD_OUT if is_held_out else TRAIN)
        path.stat()
    except (OSError, ValueError) as error:  # the latter: a name that no file can have
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    raise DataError(f"{path}: is neither a file nor a folder; write what a pipe gives to a file first")


def is_saved_dataset(path: Path) -> bool:
    """Tells whether `Dataset.save_to_disk` wrote this folder."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def stamp(path: Path) -> list[Any]:
    """Gives what changes when the files below `path` do; empty where nothing can be read."""
    try:
        found = locate(path)
        files = sorted(found.iterdir()) if found.is_dir() else [found]
        stats = [(str(file), file.stat()) for file in files]
    except (DataError, OSError):
        return []
    return [[name, stat.st_ino, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _part(folder: Path, names: tuple[str, ...]) -> Path:
    splits = _splits(folder)
    files = [folder / f"{name}{suffix}" for name in names for suffix in _SUFFIXES]
    parts = [folder / name for name in names if name in splits]
    for part in [*parts, *files]:
        if part.is_file() or is_saved_dataset(part):
            return part
    if splits:
        holds = f"it holds the parts {', '.join(splits[:_MAX_NAMED])}: name one, as in {folder / splits[0]}"
    else:
        others = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _SUFFIXES)[:_MAX_NAMED]
        holds = f"it holds {', '.join(others)}: name one" if others else "name the file itself"
    wanted = " or ".join(f"{name}.jsonl" for name in names[:1])
    raise DataError(f"{folder}: is a folder without {wanted}, and no dataset saved to disk; {holds}")


def _splits(folder: Path) -> list[str]:
    """Reads the names in a saved DatasetDict; they become parts of paths, so nothing else is taken."""
    path = folder / "dataset_dict.json"
    if not path.is_file():
        return []

    def told(why: str) -> DataError:
        return DataError(f"{path}: is damaged: {why}")

    names = decode_record(read_content(path, told), dict[str, list[str]], told).get("splits", [])
    return [name for name in names if "\0" not in name and is_saved_dataset(folder / name)]
