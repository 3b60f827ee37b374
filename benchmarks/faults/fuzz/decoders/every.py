"""Every decoder of the project."""

from pathlib import Path

from benchmarks.faults.fuzz.decoders import access, adapters, bases, datasets, folders, paths, settings, wire
from benchmarks.faults.fuzz.target import Target


def every_target(root: Path) -> list[Target]:
    """Lists them all; valid files are made below `root`, and what is tried is written there."""
    return [
        *wire.targets(),
        *adapters.targets(root),
        *bases.targets(root),
        *datasets.targets(root),
        *folders.targets(root),
        folders.part_target(root),
        *settings.targets(root),
        *access.targets(root),
        *paths.targets(root),
    ]
