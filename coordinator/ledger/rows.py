"""Records as rows of plain values, and back: what is no number and no text is JSON."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec
from msgspec import Struct

from coordinator.ledger.records import Carried, Device, Origin, Version
from coordinator.strategies.contract import Report
from edge.protocol.messages import Hello, Telemetry

T = TypeVar("T")


def pack_row(record: Iterable[object]) -> list[object]:
    """Returns a record's values as a row."""
    return [
        msgspec.json.encode(value).decode() if isinstance(value, Mapping | Struct | tuple) else value
        for value in record
    ]


def read_device(row: Device) -> Device:
    """Returns the device that stands in a row."""
    held = tuple(_read(row.held, list[int]) or ())
    hello, telemetry = _read(row.hello, Hello), _read(row.telemetry, Telemetry)
    return row._replace(online=bool(row.online), hello=hello, telemetry=telemetry, held=held)


def read_version(row: Version) -> Version:
    """Returns the version that stands in a row."""
    return row._replace(
        report=_read(row.report, Report),
        tiers=_read(row.tiers, dict[str, str]) or {},
        carried=_read(row.carried, Carried) or Carried(),
        kept=bool(row.kept),
        origin=_read(row.origin, Origin),
    )


def _read(text: object, kind: type[T]) -> T | None:
    """Returns what stands in a column of JSON."""
    return msgspec.json.decode(str(text), type=kind) if text is not None else None
