"""One row of a file, as every reader hands it on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from edge.training.data.faults import Unusable

BOM = b"\xef\xbb\xbf"  # of UTF-8, which Windows writes


class Row(NamedTuple):
    """One row: its number in the file, counted from 1, and its columns, or why it cannot be read."""

    number: int
    columns: Mapping[str, Any] | Unusable
