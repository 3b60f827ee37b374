"""The assets folder: small models and public data that benchmarks are run on."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

ASSETS = Path(os.environ.get("TUNEFLEET_ASSETS", Path(__file__).parents[2] / "shared" / "assets"))
NAME = "../shared/assets or TUNEFLEET_ASSETS"
NUM_CLIENTS = 10


def dolly_clients() -> Iterator[list[dict[str, str]]]:
    """Yields the rows of each of dolly-15k's clients: instruction, context and response."""
    return (_read_dolly(f"local_training_{index}") for index in range(NUM_CLIENTS))


def dolly_test() -> list[dict[str, str]]:
    """Reads dolly-15k's global test rows."""
    return _read_dolly("global_test")


def _read_dolly(name: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads((ASSETS / f"data/dolly15k/{name}.json").read_text())
    return rows
